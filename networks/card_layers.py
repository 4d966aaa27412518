"""Layers of SANA's transformers in few launches, for cards, where each operator costs the program some microseconds.

The sums are those of fast_layers.py, in other shapes: all samples and many tokens at once, norms by ``rms_norm``, one
product for queries, keys and values, and no copy of a tensor only to change its dtype: an operator that has to run
anyway writes the wider or the narrower one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        and not getattr(layer, "comfy_cast_weights", False)
        and not getattr(layer, "weight_function", None)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


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


def projections(attn, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [B, tokens, width] of self-attention: one product where their weights are joined."""
    layers = attn.to_q, attn.to_k, attn.to_v
    weight = joined_weight(layers, x)
    if weight is None:
        return tuple(layer(x) for layer in layers)
    tokens = x.flatten(0, 1).expand(len(layers), -1, -1)
    return torch.bmm(tokens, weight.transpose(1, 2)).unflatten(1, x.shape[:2]).unbind()


def linear_attention(
    attn, tokens: torch.Tensor, turns: torch.Tensor | None, step: int, before: Callable | None = None
) -> torch.Tensor:
    """fast_layers.linear_attention of tokens to themselves; ``step``: tokens of which float32 copies exist at once."""
    query, key, value = projections(attn, tokens)
    if attn.norm_k is not None:
        key = rms_norm(attn.norm_k, key)
    if attn.norm_q is not None:
        query = query.mul_(attn.norm_q.weight.to(query))  # its norm is a number for each token, which cancels
    some = max(1, step // len(tokens))
    q, k, v = (t.unflatten(2, (attn.heads, -1)).split(some, dim=1) for t in (query, key, value))
    parts = turns.split(some) if turns is not None else [None] * len(q)
    sums, total = _key_sums(k, v, parts)
    if before is not None:
        sums, total = _with_tokens_before(before, sums, total, len(tokens))
    del key, value, k, v
    for one, turn in zip(q, parts):
        _attend(one, turn, sums, total)
    return attn.to_out[1](attn.to_out[0](query))


def _key_sums(keys, values, turns) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sums over all tokens, float32: keys with values [B heads, d, d], and keys [B heads, d, 1].

    Without turns the second is None: it is the last of d + 1 columns of the first.
    """
    sums, total = [], []
    for key, value, turn in zip(keys, values, turns):
        if turn is None:
            sums.append(products(key, value))
            continue
        k32 = _positive(key)
        total.append(k32.sum(1, keepdim=True).transpose(1, 2))
        _turn(k32, turn)
        sums.append(k32.transpose(1, 2) @ _by_head(value).float().flatten(0, 1))
    return sum(sums[1:], sums[0]), sum(total[1:], total[0]) if total else None


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


def products(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Sums over tokens of keys times values, and of keys, float32 [B heads, d, d + 1]; of [B, tokens, heads, d]."""
    return _positive(key).transpose(1, 2) @ _with_ones(value)


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


def _with_ones(value: torch.Tensor) -> torch.Tensor:
    """[B, tokens, heads, d] in float32 with a one behind: [B heads, tokens, d + 1]."""
    wide = torch.empty((*_by_head(value).shape[:3], value.shape[3] + 1), dtype=torch.float32, device=value.device)
    wide[..., -1].fill_(1.0)
    wide[..., :-1].copy_(_by_head(value))
    return wide.flatten(0, 1)


def _turn(x: torch.Tensor, turn: torch.Tensor) -> None:
    """Rotates pairs of channels of [B heads, tokens, d] in place by [tokens, d / 2], complex."""
    torch.view_as_complex(x.unflatten(2, (-1, 2))).mul_(turn)


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
