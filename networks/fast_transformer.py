"""SANA's image transformer in fewer passes over memory, to the same answer.

Blocks and their attention are diffusers' own (SanaTransformerBlock, SanaLinearAttnProcessor2_0, SanaAttnProcessor2_0,
GLUMBConv) with another forward, which calls the same layers: a LoRA, weights of eight bits, layers that cast,
offloading and a ControlNet act as before. It differs in this:

- Linear attention goes over the tokens a few at a time, so that its float32 copies stay in the processor's cache. The
  sums are float32, as in diffusers.
- A query's norm is one number for each token, which the quotient of linear attention cancels: it is left out.
- Norms, modulation and gates are one kernel each where torch has one, and in place where nobody else has the tensor.
- Products of the feed-forward read tokens as channels last, and its gate works in place.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional

TOKENS = 256
"""Tokens of one step of linear attention on a processor: about the size of its cache."""

TOKENS_ON_DEVICES = 16384
"""On a card, where each step costs launches, and float32 copies of so many tokens are small beside the weights."""


def rms_scale(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean(x^2) + eps) of [..., channels], float32 [..., 1]."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm(norm, x: torch.Tensor) -> torch.Tensor:
    """diffusers' RMSNorm without a bias of an ``x`` that nobody else has, in place; as it is where there is no norm."""
    if norm is None:
        return x
    scale = rms_scale(x, norm.eps)
    return x.mul_(scale.to(x.dtype)).mul_(norm.weight.to(x))


class LinearAttention:
    """Processor: ReLU linear attention (arXiv 2410.10629) with sums over all tokens in float32.

    ``replaced``: diffusers' own, which acts where gradients are asked for.
    """

    def __init__(self, replaced):
        self.replaced = replaced

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        if torch.is_grad_enabled():
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        weight = [None if norm is None else norm.weight.float().to(query.device) for norm in (attn.norm_q, attn.norm_k)]
        mixed = [
            _linear_attention(*one, attn.heads, weight, attn.norm_k and attn.norm_k.eps)
            for one in zip(query, key, value)
        ]
        mixed = mixed[0][None] if len(mixed) == 1 else torch.stack(mixed)
        return attn.to_out[1](attn.to_out[0](mixed.to(hidden_states.dtype)))


def _linear_attention(query, key, value, heads: int, weights: list, eps: float | None) -> torch.Tensor:
    """One sample's [tokens, channels] each, not yet normalised."""
    step = TOKENS if query.device.type == "cpu" else TOKENS_ON_DEVICES
    sums = 0.0
    for k, v in zip(key.split(step), value.split(step)):
        k32 = k.float()
        if weights[1] is not None:
            k32 = k32.mul(weights[1]).mul_(rms_scale(k, eps))
        k32, v32 = _by_head(functional.relu(k32), heads), _by_head(v.float(), heads)
        sums = sums + k32.transpose(1, 2) @ functional.pad(v32, (0, 1), value=1.0)
    out = torch.empty_like(query)
    for q, part in zip(query.split(step), out.split(step)):
        q32 = q.float() if weights[0] is None else q.float().mul(weights[0])
        wide = _by_head(functional.relu(q32), heads) @ sums
        part.unflatten(1, (heads, -1)).copy_((wide[..., :-1] / (wide[..., -1:] + 1e-15)).transpose(0, 1))
    return out


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[tokens, channels] to [heads, tokens, channels of a head], a view."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


class CrossAttention:
    """Processor: scaled dot-product attention to the prompt; ``replaced`` as in LinearAttention."""

    def __init__(self, replaced):
        self.replaced = replaced

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        if torch.is_grad_enabled():
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, length, _ = source.shape
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        query = rms_norm(attn.norm_q, attn.to_q(hidden_states))
        key, value = rms_norm(attn.norm_k, attn.to_k(source)), attn.to_v(source)
        query, key, value = (t.unflatten(2, (attn.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        mixed = mixed.transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](mixed))
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor


def modulated(norm, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """norm(x) * (1 + scale) + shift of [B, tokens, channels], ``scale`` and ``shift`` [B, 1, channels]."""
    if len(x) == 1 and norm.weight is None:
        return functional.layer_norm(x, x.shape[-1:], (1 + scale).flatten(), shift.flatten(), norm.eps)
    return torch.addcmul(shift, norm(x), 1 + scale)


class FastBlock:
    """SanaTransformerBlock; with gradients, or dtypes that differ, diffusers' own forward."""

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        timestep=None,
        height=None,
        width=None,
    ):
        if torch.is_grad_enabled() or not hidden_states.dtype == timestep.dtype == self.scale_shift_table.dtype:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, height, width
            )
        parts = (self.scale_shift_table[None] + timestep.unflatten(1, (6, -1))).chunk(6, dim=1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parts

        attended = self.attn1(modulated(self.norm1, hidden_states, scale_msa, shift_msa))
        x = torch.addcmul(hidden_states, gate_msa, attended)
        if self.attn2 is not None:
            x += self.attn2(x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
        tokens = modulated(self.norm2, x, scale_mlp, shift_mlp).unflatten(1, (height, width))
        return x.addcmul_(gate_mlp, self.ff(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2))


class FastFeedForward:
    """GLUMBConv without a norm or a residual; with gradients diffusers' own forward."""

    def forward(self, hidden_states):
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        wide = self.conv_depth(functional.silu(self.conv_inverted(hidden_states), inplace=True))
        values, gate = wide.chunk(2, dim=1)
        return self.conv_point(values * functional.silu(gate, inplace=True))


@cache
def _fast_class(kind: type, fast: type) -> type:
    return type(kind.__name__, (fast, kind), {})


def use_fast_layers(module: torch.nn.Module) -> torch.nn.Module:
    """Give the blocks of a SanaTransformer2DModel or SanaControlNetModel the forward of this file, in place.

    What is not as SANA's published models have it keeps diffusers' forward.
    """
    for part in module.modules():
        if type(part).__name__ == "SanaTransformerBlock" and not isinstance(part, FastBlock):
            part.__class__ = _fast_class(type(part), FastBlock)
            _use_fast_attention(part.attn1, "SanaLinearAttnProcessor2_0", LinearAttention)
            _use_fast_attention(part.attn2, "SanaAttnProcessor2_0", CrossAttention)
            if part.ff.norm is None and not part.ff.residual_connection:
                part.ff.__class__ = _fast_class(type(part.ff), FastFeedForward)
    return module


def _use_fast_attention(attention, replaced: str, processor: type) -> None:
    if attention is None or type(attention.processor).__name__ != replaced:
        return
    norms = attention.norm_q, attention.norm_k
    if all(norm is None for norm in norms) or all(_is_across_heads(norm, attention.inner_dim) for norm in norms):
        attention.processor = processor(attention.processor)


def _is_across_heads(norm, width: int) -> bool:
    return type(norm).__name__ == "RMSNorm" and norm.weight is not None and norm.weight.shape == (width,)
