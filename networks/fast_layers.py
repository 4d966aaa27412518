"""What the blocks of SANA's image and video transformers have in common, in fewer passes over memory.

Another forward or processor of diffusers' own modules, which calls the same layers:

- Linear attention goes over the tokens a few at a time, so that its float32 copies stay in the processor's cache. The
  sums are float32, as in diffusers. The queries are computed when keys and values are summed up and gone.
- A query's norm is one number for each token, which the quotient of linear attention cancels: it is left out.
- Norms, modulation and gates are one kernel each where torch has one, and in place where nobody else has the tensor.
- Convolutions of 1x1 are matrix products of their weight, which needs no other layout for each call.

Where gradients are asked for, diffusers' own forward runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from . import card_layers

TOKENS = 512
"""Tokens of one step on a processor: its float32 copies are about the size of the cache."""

TOKENS_ON_DEVICES = 16384
"""On a card, where each step costs launches: of so many tokens each operator takes far longer than its launch."""


def tokens_of_step(device: torch.device) -> int:
    """Tokens that are computed at a time where float32 copies or wide maps are made of them."""
    return TOKENS if device.type == "cpu" else TOKENS_ON_DEVICES


def wide_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of sums over ``x``: float32, or float64 where it is that already."""
    return torch.promote_types(x.dtype, torch.float32)


def rms_scale(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean(x^2) + eps) of [..., channels], float32 [..., 1]."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_dtype(x))
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm(norm, x: torch.Tensor) -> torch.Tensor:
    """diffusers' RMSNorm without a bias of an ``x`` that nobody else has, in place; as it is where there is no norm."""
    if norm is None:
        return x
    if card_layers.few_launches(x):
        return card_layers.rms_norm(norm, x)
    scale = rms_scale(x, norm.eps)
    return x.mul_(scale.to(x.dtype)).mul_(norm.weight.to(x))


def linear_attention(
    attn, tokens: torch.Tensor, source: torch.Tensor, turns=None, before: Callable | None = None
) -> torch.Tensor:
    """ReLU linear attention (arXiv 2410.10629) of [B, tokens, width] with sums over all tokens in float32.

    ``turns`` [tokens, channels of a head / 2], complex: the rotations of queries and keys by their positions, which
    act on the sums with the values and not on the divisor (SANA-Video, arXiv 2509.24695). ``before``: gives for the
    sums of each sample's own tokens those to attend to, with the tokens before them.
    """
    if card_layers.few_launches(tokens) and source is tokens:
        return card_layers.linear_attention(attn, tokens, turns, TOKENS_ON_DEVICES, before)
    wide, norms = wide_dtype(tokens), (attn.norm_q, attn.norm_k)
    weights = [None if norm is None else norm.weight.to(tokens.device, wide) for norm in norms]
    eps = attn.norm_k and attn.norm_k.eps
    key, value = attn.to_k(source), attn.to_v(source)
    sums = [_key_sums(k, v, attn.heads, weights[1], eps, turns) for k, v in zip(key, value)]
    sums = sums if before is None else before(sums)
    del key, value
    query = attn.to_q(tokens)
    for one, sums_of_one in zip(query, sums):
        _attend(one, attn.heads, weights[0], turns, *sums_of_one)
    return attn.to_out[1](attn.to_out[0](query))


def _key_sums(key, value, heads: int, weight, eps, turns) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one sample's [tokens, channels]: keys with values [heads, channels, channels], and the sum of keys."""
    sums, total, step = 0.0, 0.0, tokens_of_step(key.device)
    for k, v, turn in zip(key.split(step), value.split(step), _split(turns, step, len(key))):
        k32 = _positive(k, weight, eps)
        total = total + k32.sum(0)
        k32 = rotated(k32, turn, heads)
        sums = sums + _by_head(k32, heads).transpose(1, 2) @ _by_head(v.to(k32.dtype), heads)
    return sums, total


def _attend(query, heads: int, weight, turns, sums, total) -> None:
    """The attention of one sample's ``query`` [tokens, channels], not yet normalised, in its memory."""
    step = tokens_of_step(query.device)
    for q, turn in zip(query.split(step), _split(turns, step, len(query))):
        q32 = _positive(q, weight)
        divisor = (q32 * total).unflatten(1, (heads, -1)).sum(-1, keepdim=True)
        wide = _by_head(rotated(q32, turn, heads), heads) @ sums
        q.unflatten(1, (heads, -1)).copy_(wide.transpose(0, 1) / (divisor + card_layers.EPS))


def _positive(x: torch.Tensor, weight, eps: float | None = None) -> torch.Tensor:
    """The ReLU of [tokens, channels] in float32, after its norm; without ``eps`` only after the norm's weight."""
    wide = x.to(wide_dtype(x)) if weight is None else x.to(wide_dtype(x)).mul(weight)
    return functional.relu(wide if eps is None else wide.mul_(rms_scale(x, eps)))


def rotated(x: torch.Tensor, turn, heads: int) -> torch.Tensor:
    """[tokens, channels], whose channels are pairs, each turned in its plane by its token's ``turn``."""
    if turn is None:
        return x
    pairs = torch.view_as_complex(x.unflatten(1, (heads, -1, 2)))
    return torch.view_as_real(pairs * turn[:, None]).flatten(1)


def _split(turns, step: int, tokens: int):
    return turns.split(step) if turns is not None else [None] * -(-tokens // step)


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[tokens, channels] to [heads, tokens, channels of a head], a view."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


class CrossAttention:
    """Processor: scaled dot-product attention to the prompt; ``replaced``: diffusers' own, used with gradients.

    In place of a prompt's states it takes their :func:`keys_and_values`. ``attend``: what computes it in place of
    torch's scaled_dot_product_attention, with its arguments (:func:`attention_by`).
    """

    def __init__(self, replaced):
        self.replaced = replaced
        self.attend: Callable | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        if torch.is_grad_enabled():
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        # the prompt's norm gives its weight's dtype
        key, value = source if isinstance(source, tuple) else keys_and_values(attn, source.to(hidden_states.dtype))
        query = _heads(attn, rms_norm(attn.norm_q, attn.to_q(hidden_states)))
        if attention_mask is not None:
            attention_mask = attention_mask[:, :, None]  # [B, 1, L] of the prompt, for all heads and tokens
        attend = self.attend or functional.scaled_dot_product_attention
        mixed = attend(query, key, value, attn_mask=attention_mask)
        mixed = mixed.transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](mixed))
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor


@contextmanager
def attention_by(module: torch.nn.Module, attend: Callable | None) -> Iterator[None]:
    """Within it, a transformer's cross-attention is computed by ``attend``; None: by torch."""
    processors = [getattr(block.attn2, "processor", None) for block in module.transformer_blocks if attend]
    ours = [processor for processor in processors if isinstance(processor, CrossAttention)]
    try:
        for processor in ours:
            processor.attend = attend
        yield
    finally:
        for processor in ours:
            processor.attend = None


def keys_and_values(attn, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What cross-attention reads of a prompt's states [B, L, width]: [B, heads, L, channels of a head] each."""
    return _heads(attn, rms_norm(attn.norm_k, attn.to_k(states))), _heads(attn, attn.to_v(states))


def _heads(attn, x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def modulated(norm, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """norm(x) * scale + shift of [B, groups, tokens, channels]; ``scale`` and ``shift`` [B, groups, 1, channels]."""
    if scale.shape[:-1].numel() == 1 and norm.weight is None:
        return functional.layer_norm(x, x.shape[-1:], scale.flatten(), shift.flatten(), norm.eps)
    normed = norm(x)
    return torch.addcmul(shift, normed, scale, out=normed)


def is_fast(block, hidden_states: torch.Tensor, timestep: torch.Tensor) -> bool:
    """Whether a block's forward may be ours: no gradients, and one dtype.

    A host may compute in another dtype than that of the block's table (ComfyUI's ModelComputeDtype), float64 aside.
    """
    one = hidden_states.dtype == timestep.dtype and block.scale_shift_table.dtype.itemsize <= 4
    return one and not torch.is_grad_enabled()


SHIFT_MSA, SCALE_MSA, GATE_MSA, SHIFT_MLP, SCALE_MLP, GATE_MLP = range(6)
SCALES = slice(SCALE_MSA, None, SCALE_MLP - SCALE_MSA)


def vector_of(block, vectors: torch.Tensor, index: int, ready: bool, dtype: torch.dtype) -> torch.Tensor:
    """One vector of a block's modulation [B, groups, 1, width]; a scale has its 1 added."""
    if ready:
        return vectors[:, :, index, None].to(dtype)
    vector = (block.scale_shift_table[index] + vectors[:, :, index]).to(dtype)
    return (vector.add_(1) if index in (SCALE_MSA, SCALE_MLP) else vector)[:, :, None]


def run_block(
    block, x, vectors, caption, caption_mask, feed_forward: Callable, ready: bool = False, **positions
) -> torch.Tensor:
    """The steps of a block for tokens ``x`` [B, tokens, width], which are left as they are.

    ``vectors`` [B, groups, 6, width]: the modulation of as many groups of tokens of equal size: of a sample, of a
    frame, or of each token. ``ready``: the block's own are added, and 1 to the scales; else one vector at a time is
    computed. ``feed_forward``: of modulated tokens. ``positions``: what self-attention is given beside them.
    """
    groups = vectors.shape[1], -1

    def apart(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(1, groups)

    def normed(norm, x: torch.Tensor, scale: int, shift: int) -> torch.Tensor:
        wanted = (vector_of(block, vectors, index, ready, x.dtype) for index in (scale, shift))
        return modulated(norm, apart(x), *wanted).flatten(1, 2)

    x = x.contiguous()  # of the patches' embedding the channels are not last
    attended = block.attn1(normed(block.norm1, x, SCALE_MSA, SHIFT_MSA), **positions)
    x = torch.addcmul(apart(x), vector_of(block, vectors, GATE_MSA, ready, x.dtype), apart(attended)).flatten(1, 2)
    del attended
    if block.attn2 is not None:
        x += block.attn2(x, encoder_hidden_states=caption, attention_mask=caption_mask)
    out = feed_forward(normed(block.norm2, x, SCALE_MLP, SHIFT_MLP))
    apart(x).addcmul_(vector_of(block, vectors, GATE_MLP, ready, x.dtype), apart(out))
    return x


class ProductOfPixels:
    """A Conv2d of 1x1: one matrix product where the channels of its input are last in memory, to the same sums."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def _conv_forward(self, input, weight, bias):
        pixels = input.movedim(1, -1)
        if torch.is_grad_enabled() or not pixels.is_contiguous():
            return super()._conv_forward(input, weight, bias)
        out = functional.linear(pixels.flatten(0, -2), weight.flatten(1), bias)
        return out.unflatten(0, pixels.shape[:-1]).movedim(-1, 1)


def gated(feed_forward, maps: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """GLUMBConv's layers on maps [B, channels, H, W] with channels last, into ``out`` where there is one."""
    wide = feed_forward.conv_depth(functional.silu(feed_forward.conv_inverted(maps), inplace=True))
    values, gate = wide.chunk(2, dim=1)
    mixed, last = values * functional.silu(gate, inplace=True), feed_forward.conv_point
    if out is None:
        return last(mixed)
    if not _is_product(last, mixed, out):
        return out.copy_(last(mixed))
    torch.mm(_rows(mixed), last.weight.flatten(1).t(), out=_rows(out))
    return out


def _is_product(layer, x: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether a ProductOfPixels is no more than the product with its weight, of maps whose pixels are rows."""
    plain = isinstance(layer, ProductOfPixels) and layer.bias is None and card_layers.is_unchanged(layer)
    same = plain and (layer.weight.dtype, layer.weight.device) == (x.dtype, x.device)
    return same and all(t.movedim(1, -1).is_contiguous() for t in (x, out))


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """[B, channels, H, W] with channels last as [pixels, channels], a view."""
    return maps.movedim(1, -1).flatten(0, -2)


@cache
def _fast_class(kind: type, fast: type) -> type:
    return type(kind.__name__, (fast, kind), {})


def use_class(part: torch.nn.Module, fast: Any) -> None:
    """Put ``fast`` in front of a module's class, once."""
    if not isinstance(part, fast):
        kind: Any = type(part)
        part.__class__ = _fast_class(kind, fast)


def use_fast_feed_forward(part: torch.nn.Module, fast: type) -> None:
    """For a GLUMBConv or GLUMBTempConv as SANA's published models have it."""
    if part.norm is not None or part.residual_connection:
        return
    use_class(part, fast)
    for layer in (part.conv_inverted, part.conv_point):
        if isinstance(layer, torch.nn.Conv2d):
            use_class(layer, ProductOfPixels)


def use_fast_attention(attention, replaced: str, processor: type) -> None:
    """``processor`` in place of diffusers' of the class ``replaced``, where the norms are as it computes them."""
    if attention is None or type(attention.processor).__name__ != replaced:
        return
    norms = attention.norm_q, attention.norm_k
    if all(norm is None for norm in norms) or all(_is_across_heads(norm, attention.inner_dim) for norm in norms):
        attention.processor = processor(attention.processor)


def _is_across_heads(norm, width: int) -> bool:
    return type(norm).__name__ == "RMSNorm" and norm.weight is not None and norm.weight.shape == (width,)
