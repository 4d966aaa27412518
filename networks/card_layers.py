"""Layers of SANA's transformers in few launches, for cards, where each operator costs the program some microseconds.

The sums are those of fast_layers.py, in other shapes: all samples and many tokens at once, norms by ``rms_norm``, one
product for queries, keys and values, and no copy of a tensor only to change its dtype: an operator that has to run
anyway writes the wider or the narrower one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional

CARDS = {"cuda", "meta"}
"""Kinds of devices on which these layers are used; ``meta`` stands for a card where launches or memory are counted."""

EPS = 1e-15
"""Added to the divisor of linear attention, as in diffusers."""


def few_launches(x: torch.Tensor) -> bool:
    """Whether a tensor's device runs the layers of this file; not while torch.compile fuses operators itself."""
    return x.device.type in CARDS and not torch.compiler.is_compiling()


def left_to_compiler(x: torch.Tensor) -> bool:
    """Whether torch.compile, on a card, is to find its own shapes for diffusers' layers."""
    return x.device.type in CARDS and torch.compiler.is_compiling()


def rms_norm(norm, x: torch.Tensor) -> torch.Tensor:
    """diffusers' RMSNorm over the channels of [..., channels], without its bias."""
    return normed(x, norm.weight.to(x), norm.eps)


HAS_KERNEL = hasattr(torch.ops.aten, "_fused_rms_norm")
"""Whether torch's rms_norm is one kernel on a card: from 2.9 on. Before, it makes several maps in float32."""


def normed(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) over the channels of [..., channels], times a weight, in float32."""
    if HAS_KERNEL:
        return functional.rms_norm(x, x.shape[-1:], weight, eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    out = x * length.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
    return out if weight is None else out.mul_(weight)


def add_normed(norm, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None) -> None:
    """diffusers' RMSNorm of ``x`` [..., channels], plus ``residual``, into ``out``."""
    made, last = rms_norm(norm, x), residual is None
    if norm.bias is not None:
        made = torch.add(made, norm.bias.to(x), out=out if last else made)
    elif last:
        out.copy_(made)
    if not last:
        torch.add(made, residual, out=out)


def is_plain(layer) -> bool:
    """Whether a Linear is no more than the product with its weight: no LoRA beside it, no cast, nothing quantised."""
    return (
        isinstance(layer, torch.nn.Linear)
        and type(layer).__name__ in ("Linear", "CastingLinear")
        and "Quantized" not in type(layer.weight).__name__
        and is_unchanged(layer)
    )


def is_unchanged(layer) -> bool:
    """Whether a host uses a layer's weight as it is, and nothing is called around it."""
    changes = getattr(layer, "comfy_cast_weights", False) or getattr(layer, "weight_function", None)
    return not (changes or layer._forward_hooks or layer._forward_pre_hooks)


def joined_weight(layers: Sequence, x: torch.Tensor) -> torch.Tensor | None:
    """The weights [layers, out, in] of plain layers that lie one behind another in memory, a view; else None."""
    if torch.compiler.is_compiling() or not all(is_plain(layer) and layer.bias is None for layer in layers):
        return None
    weights = [layer.weight for layer in layers]
    first, storages = weights[0], {weight.untyped_storage()._cdata for weight in weights}
    if len(storages) > 1 or any(w.dtype != x.dtype or w.shape != first.shape for w in weights):
        return None
    offsets = [first.storage_offset() + number * first.numel() for number in range(len(weights))]
    if [weight.storage_offset() for weight in weights] != offsets or not first.is_contiguous():
        return None
    return first.as_strided((len(weights), *first.shape), (first.numel(), *first.stride()))


def projections(attn, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Queries, keys and values [B, tokens, width] of self-attention: a tensor where their weights are joined."""
    layers = attn.to_q, attn.to_k, attn.to_v
    weight = joined_weight(layers, x)
    if weight is None:
        return tuple(layer(x) for layer in layers)
    tokens = x.flatten(0, 1).expand(len(layers), -1, -1)
    return torch.bmm(tokens, weight.transpose(1, 2)).unflatten(1, x.shape[:2])


def linear_attention(
    attn, tokens: torch.Tensor, turns: torch.Tensor | None, step: int, before: Callable | None = None
) -> torch.Tensor:
    """fast_layers.linear_attention of tokens to themselves; ``step``: tokens of which float32 copies exist at once."""
    made = projections(attn, tokens)
    whole = made.unflatten(3, (attn.heads, -1)) if isinstance(made, torch.Tensor) else None
    query, key, value = made
    del made
    if attn.norm_k is not None:
        key = rms_norm(attn.norm_k, key)
    if attn.norm_q is not None:
        query.mul_(attn.norm_q.weight.to(query))  # its norm is a number for each token, which cancels
    q, k, v = (t.unflatten(2, (attn.heads, -1)) for t in (query, key, value))
    memory = WideMemory.of_call(q) if turns is None and before is None else None
    if memory is not None:
        memory.attend(q, k, v, whole, is_key_of_whole=attn.norm_k is None)
        return attn.to_out[1](attn.to_out[0](query))
    q, k, v = (t.split(max(1, step // len(tokens)), dim=1) for t in (q, k, v))
    parts = turns.split(q[0].shape[1]) if turns is not None else [None] * len(q)
    sums, total = _key_sums(k, v, parts)
    if before is not None:
        sums, total = _with_tokens_before(before, sums, total, len(tokens))
    del whole, key, value, k, v
    for one, turn in zip(q, parts):
        _attend(one, turn, sums, total)
    return attn.to_out[1](attn.to_out[0](query))


def _key_sums(keys, values, turns) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sums over all tokens, float32: keys with values [B heads, d, d], and keys [B heads, d, 1].

    Without turns the second is None: it is the last of d + 1 columns of the first.
    """
    sums, total = None, []
    for key, value, turn in zip(keys, values, turns):
        if turn is None:
            sums = products(key, value, sums)
            continue
        k32 = _positive(key)
        total.append(k32.sum(1, keepdim=True).transpose(1, 2))
        _turn(k32, turn)
        sums = _added(sums, k32.transpose(1, 2), _wide(value))
    return sums, sum(total[1:], total[0]) if total else None


def _added(sums: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``sums`` and a product of matrices, in place."""
    return left @ right if sums is None else sums.baddbmm_(left, right)


def _with_tokens_before(before: Callable, sums, total, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums with those that ``before`` has for each sample: [heads, d, d] and [heads d], as in fast_layers.py."""
    parts = before(list(zip(sums.unflatten(0, (samples, -1)), total.view(samples, -1))))
    joined = [torch.stack(part) for part in zip(*parts)]
    return joined[0].flatten(0, 1), joined[1].view(total.shape)


def _attend(query, turn, sums, total) -> None:
    """The attention of a part [B, tokens, heads, d] of the queries, in their memory."""
    if turn is None:
        attend(query, sums, query)
        return
    q32 = _positive(query)
    divisor = q32 @ total
    _turn(q32, turn)
    _divided(q32 @ sums, divisor, query)


def products(key: torch.Tensor, value: torch.Tensor, sums: torch.Tensor | None = None) -> torch.Tensor:
    """Sums over tokens of keys times values, and of keys, float32 [B heads, d, d + 1]; of [B, tokens, heads, d].

    They are added to ``sums``, if there are some already.
    """
    return _added(sums, _positive(key).transpose(1, 2), _with_ones(value))


def attend(query: torch.Tensor, sums: torch.Tensor, out: torch.Tensor, eps: float = EPS) -> None:
    """Linear attention of queries [B, tokens, heads, d] to such sums, into ``out`` of the same shape."""
    wide, divisor = (_positive(query) @ sums).split([query.shape[3], 1], dim=2)
    _divided(wide, divisor, out, eps)


def _divided(wide: torch.Tensor, divisor: torch.Tensor, out: torch.Tensor, eps: float = EPS) -> None:
    apart = (t.unflatten(0, out.shape[::2]) for t in (wide, divisor.add_(eps)))
    torch.div(*apart, out=_by_head(out))


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """[B, tokens, heads, d] as [B, heads, tokens, d]."""
    return x.transpose(1, 2)


def _positive(x: torch.Tensor) -> torch.Tensor:
    """The ReLU of [B, tokens, heads, d] in float32, [B heads, tokens, d]."""
    out = torch.empty(_by_head(x).shape, dtype=torch.float32, device=x.device)
    torch.ops.aten.threshold.out(_by_head(x), 0, 0, out=out)  # torch's other ReLUs write their input's dtype
    return out.flatten(0, 1)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """[B, tokens, heads, d] in float32, [B heads, tokens, d]."""
    out = torch.empty(_by_head(x).shape, dtype=torch.float32, device=x.device)
    return out.copy_(_by_head(x)).flatten(0, 1)


def _with_ones(value: torch.Tensor) -> torch.Tensor:
    """[B, tokens, heads, d] in float32 with a one behind: [B heads, tokens, d + 1]."""
    wide = torch.empty((*_by_head(value).shape[:3], value.shape[3] + 1), dtype=torch.float32, device=value.device)
    wide[..., -1].fill_(1.0)
    wide[..., :-1].copy_(_by_head(value))
    return wide.flatten(0, 1)


def _turn(x: torch.Tensor, turn: torch.Tensor) -> None:
    """Rotates pairs of channels of [B heads, tokens, d] in place by [tokens, d / 2], complex."""
    torch.view_as_complex(x.unflatten(2, (-1, 2))).mul_(turn)


SHARED_TOKENS = 2048
"""Tokens of a call up to which its attentions share memory: of more, each operator takes longer than its launch."""

COLUMNS = 8
"""Channels of a head in that memory beyond its own, of which one is used: rows stay aligned to 32 bytes."""


class _OfThread(threading.local):
    """What shared_memory holds; ComfyUI computes on each of several cards in a thread."""

    memories: dict | None = None


_of_thread = _OfThread()


@contextmanager
def shared_memory(tokens: int) -> Iterator[None]:
    """Within it linear attentions, which run one after another, have one WideMemory; ``tokens``: of all samples."""
    before = _of_thread.memories
    _of_thread.memories = {} if tokens <= SHARED_TOKENS else None
    try:
        yield
    finally:
        _of_thread.memories = before


def shared_values(tokens: int, samples: int, width: int, head: int) -> int:
    """Float32 values of the memory that a call's attentions share: ``tokens`` of all samples, heads of ``head``."""
    values = 3 * tokens * (head + COLUMNS) + samples * (head + 1) ** 2
    return values * width // head if tokens <= SHARED_TOKENS else 0


class WideMemory:
    """Queries, keys and values of linear attention in float32, with what divides beside them.

    One column behind the channels of a head holds EPS in the queries and 1 in the values, and a row behind the sums is
    0, 1 at its end. So one product gives the sums of keys too, and another the divisor with EPS added. These constants
    are written once in a call of the model.
    """

    def __init__(self, query: torch.Tensor):
        batch, tokens, heads, self.channels = query.shape
        like = {"dtype": torch.float32, "device": query.device}
        self.parts = torch.empty(3, batch, heads, tokens, self.channels + COLUMNS, **like)
        self.parts[0, ..., self.channels].fill_(EPS)
        self.parts[2, ..., self.channels].fill_(1.0)
        self.sums = torch.zeros(batch * heads, self.channels + 1, self.channels + 1, **like)
        self.sums[:, -1, -1].fill_(1.0)
        self.least = query.new_zeros(3, 1, 1, 1, 1)
        self.least[2].fill_(-math.inf)

    @classmethod
    def of_call(cls, query: torch.Tensor) -> WideMemory | None:
        """That of queries [B, tokens, heads, d] in the call of a model that runs now; None where there is none."""
        memories = _of_thread.memories
        if memories is None or query.dtype == torch.float64:
            return None
        key = query.shape, query.dtype, query.device
        if key not in memories:
            memories[key] = cls(query)
        return memories[key]

    def attend(self, query, key, value, whole: torch.Tensor | None, is_key_of_whole: bool) -> None:
        """Linear attention of [B, tokens, heads, d], into the memory of ``query``; ``whole``: all three, if joined."""
        d = self.channels
        wide = self.parts[..., :d]
        if whole is None:
            torch.ops.aten.threshold.out(_by_head(query), 0, 0, out=wide[0])
            wide[2].copy_(_by_head(value))
        else:  # the ReLU of queries (and keys), and values as they are
            some = slice(None) if is_key_of_whole else slice(None, None, 2)
            torch.maximum(whole[some].transpose(2, 3), self.least[some], out=wide[some])
        if whole is None or not is_key_of_whole:
            torch.ops.aten.threshold.out(_by_head(key), 0, 0, out=wide[1])
        q, k, v = (part.flatten(0, 1) for part in self.parts)
        torch.bmm(k[..., :d].transpose(1, 2), v[..., : d + 1], out=self.sums[:, :d])
        values, divisor = (q[..., : d + 1] @ self.sums).split([d, 1], dim=2)
        torch.div(*(t.unflatten(0, query.shape[::2]) for t in (values, divisor)), out=_by_head(query))


def join_projections(module: torch.nn.Module) -> tuple[int, int]:
    """Put the weights of queries, keys and values one behind another, where they are plain and on a card.

    Of transformers and of DC-AE. Returns how many of the self-attentions have it, and how many there are. A weight
    that is replaced later (a LoRA, offloading) ends it for its layer, which then has three products again.
    """
    found = [attn for name, attn in module.named_modules() if hasattr(attn, "to_q") and not name.endswith("attn2")]
    return sum(map(_join, found)), len(found)


def _join(attn) -> bool:
    layers = attn.to_q, attn.to_k, attn.to_v
    weights = [layer.weight for layer in layers]
    same = {(w.dtype, w.shape, w.device) for w in weights}
    plain = all(is_plain(layer) and layer.bias is None for layer in layers)
    if not plain or len(same) > 1 or not few_launches(weights[0]) or weights[0].itemsize == 1:
        return False
    if joined_weight(layers, weights[0]) is None:
        joined = torch.stack([weight.detach() for weight in weights])
        for layer, part in zip(layers, joined):
            _replace(layer, part)
    return True


def _replace(layer, weight: torch.Tensor) -> None:
    if torch.is_inference_mode_enabled():  # whose tensors a Parameter from outside does not take
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    else:
        layer.weight.data = weight
