"""DC-AE in fewer passes over memory, to the same answer.

Layers are diffusers' own (autoencoder_dc.py, SanaMultiscaleLinearAttention, GLUMBConv) with another forward, which
calls the same convolutions and products: layers that cast, offloading and tiles act as before. It differs in
this:

- Maps are channels last from the first layer on: convolutions read and write them without a change of layout, and a
  norm over channels or a product reads rows of memory.
- Maps that are large are computed in strips of rows with the rows around them that a convolution sees, so what a block
  makes on its way takes a strip. Nothing is kept longer than the next layer needs it.
- A norm, its affine part and the sum with the shortcut are one pass, in float32 and rounded once, a few rows at a time.
- Linear attention goes over the tokens a few at a time; where the image is small it is linear too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from . import card_layers
from .fast_layers import use_class

STRIP = 2**24
"""Values of a map that one strip has at most, unless that is less than LEAST_ROWS."""

LEAST_ROWS = 16
"""Rows of a strip at least: those around it are computed twice."""

STEP = 2**22
"""Values that are converted to float32 at once: little beside a map, and near the processor's cache.

With fewer, steps are many, and each has operations at whose end threads wait for each other: on a busy machine that
takes far longer than what they compute.
"""

STRIP_ON_DEVICES = STEP_ON_DEVICES = 2**26
"""On a card, where each costs launches."""


def rows_of_step(x: torch.Tensor, dim: int) -> int:
    """Rows along ``dim`` that are converted to float32 at once."""
    step = STEP_ON_DEVICES if card_layers.few_launches(x) else STEP
    return max(1, step // (x.numel() // x.shape[dim]))


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] with the channels of a cell side by side; itself where it is so already, or on Apple's GPU."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


def strips(x: torch.Tensor, height: int, width: int, halo: int) -> Iterator[tuple[slice, slice, slice]]:
    """Rows in strips of a map that is made of ``x``: ``width`` is the number of values of a row.

    Each has its own rows, those with ``halo`` more around them inside the map, and where its own are in these.
    """
    strip = STRIP_ON_DEVICES if card_layers.few_launches(x) else STRIP
    rows = max(LEAST_ROWS, strip // width)
    for start in range(0, height, rows):
        stop, above = min(start + rows, height), min(start, halo)
        yield slice(start, stop), slice(start - above, min(stop + halo, height)), slice(above, above + stop - start)


def scaled(rows: slice, by: int) -> slice:
    return slice(rows.start * by, rows.stop * by)


def add_normed(norm, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """diffusers' RMSNorm over the channels of ``x`` [B, C, H, W], plus ``residual``, into ``out``: ``x`` or another."""
    if card_layers.few_launches(x):
        cells = (None if t is None else t.movedim(1, -1) for t in (x, out, residual))
        card_layers.add_normed(norm, *cells)
        return out
    weight, bias = (None if p is None else p.to(x.device, torch.float32) for p in (norm.weight, norm.bias))
    rows = rows_of_step(x, 2)
    maps = [t.movedim(1, -1).split(rows, dim=1) for t in (x, out, x if residual is None else residual)]
    for given, target, added in zip(*maps):
        wide = given.to(torch.float32, copy=True)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        wide.mul_(length.square_().div_(x.shape[1]).add_(norm.eps).rsqrt_()).mul_(weight)
        if bias is not None:
            wide.add_(bias)
        target.copy_(wide if residual is None else wide.add_(added.float()))
    return out


def activated(layer, x: torch.Tensor) -> torch.Tensor:
    """An activation of an ``x`` that nobody else has."""
    if type(layer) is torch.nn.SiLU:
        return functional.silu(x, inplace=True)
    return x.relu_() if type(layer) is torch.nn.ReLU else layer(x)


class FastResBlock:
    """ResBlock with an RMS norm."""

    def forward(self, hidden_states):
        if torch.is_grad_enabled() or card_layers.left_to_compiler(hidden_states):
            return super().forward(hidden_states)
        x = channels_last(hidden_states)
        out = torch.empty_like(x)
        for own, wider, inside in strips(x, x.shape[2], x.numel() // x.shape[2], 2):
            h = self.conv2(activated(self.nonlinearity, self.conv1(x[:, :, wider])))
            add_normed(self.norm, h[:, :, inside], out[:, :, own], x[:, :, own])
            del h
        return out


class FastUpBlock:
    """DCUpBlock2d: nearest interpolation and a convolution, or a convolution and a pixel shuffle, and a shortcut."""

    interpolate: bool
    conv: torch.nn.Module

    def forward(self, hidden_states):
        if torch.is_grad_enabled() or card_layers.left_to_compiler(hidden_states):
            return super().forward(hidden_states)
        x, out = channels_last(hidden_states), None
        for own, wider, inside in strips(x, x.shape[2], 4 * x.numel() // x.shape[2], 1):
            part = channels_last(self._convolved(x[:, :, wider], inside))
            if self.shortcut:
                add_up_shortcut(part, x[:, :, own], self.repeats)
            if out is None:
                out = part if own.stop == x.shape[2] else empty_map(part, 2 * x.shape[2])
            if out is not part:
                out[:, :, scaled(own, 2)] = part
            del part
        return out

    def _convolved(self, x: torch.Tensor, inside: slice) -> torch.Tensor:
        """Rows ``inside`` of ``x`` with those around them, at twice the size."""
        if not self.interpolate:
            return functional.pixel_shuffle(self.conv(x)[:, :, inside], 2)
        wide = twice_as_large(x)
        around = min(inside.start, 1), min(x.shape[2] - inside.stop, 1)
        wide = wide[:, :, around[0] : wide.shape[2] - around[1]]
        return self.conv(wide)[:, :, around[0] : wide.shape[2] - around[1]]


def empty_map(part: torch.Tensor, rows: int) -> torch.Tensor:
    """A channels-last map of so many rows for strips like ``part``."""
    size = *part.shape[:2], rows, part.shape[3]
    return torch.empty(size, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)


def twice_as_large(x: torch.Tensor) -> torch.Tensor:
    """Each cell of [B, C, H, W] four times: nearest interpolation."""
    tokens = x.movedim(1, -1)[:, :, None, :, None]
    return tokens.expand(-1, -1, 2, -1, 2, -1).flatten(3, 4).flatten(1, 2).movedim(-1, 1)


def cells(x: torch.Tensor) -> torch.Tensor:
    """[B, C, 2h, 2w] as [B, h, 2, w, 2, C], a view."""
    return x.movedim(1, -1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def add_up_shortcut(out: torch.Tensor, x: torch.Tensor, repeats: int) -> None:
    """Adds to [B, C, 2h, 2w] the pixel shuffle of ``x`` [B, C', h, w], each channel of it ``repeats`` times.

    ``repeats`` divides 4, or is a multiple of it.
    """
    tokens = x.movedim(1, -1)
    if repeats > 4:
        tokens = tokens.repeat_interleave(repeats // 4, dim=-1)
    kinds = max(1, 4 // repeats)
    shifts = min(kinds, 2), max(1, kinds // 2)  # of those of a cell's four that differ: by row, and by column
    cells(out).add_(tokens.unflatten(-1, (-1, *shifts)).permute(0, 1, 4, 2, 5, 3))


class FastDownBlock:
    """DCDownBlock2d: a convolution of stride 2, or one and a pixel unshuffle, and a shortcut."""

    def forward(self, hidden_states):
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        x, out = channels_last(hidden_states), None
        for own, wider, inside in strips(x, x.shape[2] // 2, 2 * x.numel() // x.shape[2], 1):
            part = self.conv(x[:, :, scaled(wider, 2)])
            part = functional.pixel_unshuffle(part, 2) if self.downsample else part
            part = part[:, :, inside]
            if self.shortcut:
                add_down_shortcut(part, x[:, :, scaled(own, 2)], self.group_size)
            out = empty_map(part, x.shape[2] // 2) if out is None else out
            out[:, :, own] = part
            del part
        return out


def add_down_shortcut(out: torch.Tensor, x: torch.Tensor, group: int) -> None:
    """Adds to [B, C, h, w] means of ``group`` channels in a row of the pixel unshuffle of ``x`` [B, C', 2h, 2w].

    ``group`` divides 4, or is a multiple of it.
    """
    size = (2 if group >= 4 else 1), (2 if group >= 2 else 1)
    mean = functional.avg_pool2d(x, size).movedim(1, -1)
    apart = mean.unflatten(2, (-1, 2 // size[1])).unflatten(1, (-1, 2 // size[0]))
    tokens = apart.permute(0, 1, 3, 5, 2, 4).flatten(3)
    if group > 4:
        tokens = tokens.unflatten(3, (-1, group // 4)).mean(4)
    out.movedim(1, -1).add_(tokens)


class FastFeedForward:
    """GLUMBConv with an RMS norm and a residual."""

    def forward(self, hidden_states):
        if torch.is_grad_enabled() or card_layers.left_to_compiler(hidden_states):
            return super().forward(hidden_states)
        x = channels_last(hidden_states)
        wide = self.conv_depth(functional.silu(self.conv_inverted(x), inplace=True))
        values, gate = wide.chunk(2, dim=1)
        gated = values * functional.silu(gate, inplace=True)
        del wide, values, gate
        out = self.conv_point(gated)
        return add_normed(self.norm, out, out, x)


class MultiscaleAttention:
    """Processor: ReLU linear attention of several scales (EfficientViT, arXiv 2205.14756) with sums in float32.

    ``replaced``: diffusers' own, which acts where gradients are asked for.
    """

    def __init__(self, replaced):
        self.replaced = replaced

    def __call__(self, attn, hidden_states):
        if torch.is_grad_enabled() or card_layers.left_to_compiler(hidden_states):
            return self.replaced(attn, hidden_states)
        x = channels_last(hidden_states)
        scales = attention_maps(attn, x)
        return apply_attention(attn, x, scales, attention_sums(attn, scales))


def attention_maps(attn, x: torch.Tensor) -> list[torch.Tensor]:
    """What attention reads, for each scale [B, H, W, 3 heads d]: query, key and value of a head are side by side."""
    tokens = x.movedim(1, -1)
    layers = attn.to_q, attn.to_k, attn.to_v
    joined = card_layers.joined_weight(layers, x)
    if joined is None:
        maps = [torch.cat([layer(tokens) for layer in layers], dim=-1)]
    else:
        maps = [functional.linear(tokens, joined.flatten(0, 1))]
    maps += [scale(maps[0].movedim(-1, 1)).movedim(1, -1) for scale in attn.to_qkv_multiscale]
    return maps


def _steps(attn, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A map in steps of rows: [B, h, W, heads, 3, d]."""
    return x.unflatten(-1, (-1, 3, attn.attention_head_dim)).split(rows_of_step(x, 1), dim=1)


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """[B, h, W, heads, d] in float32 as [B, heads, h W, d]."""
    return x.flatten(1, 2).transpose(1, 2).float()


def attention_sums(attn, maps: list[torch.Tensor], rows=slice(None), columns=slice(None)) -> list[torch.Tensor]:
    """For each scale the sums of keys times values, and of keys, over positions: float32 [B, heads, d, d + 1]."""
    return [sum(map(_products, _steps(attn, scale[:, rows, columns]))) for scale in maps]


def _products(part: torch.Tensor) -> torch.Tensor:
    if card_layers.few_launches(part):
        key, value = (part[..., kind, :].flatten(1, 2) for kind in (1, 2))
        return card_layers.products(key, value).unflatten(0, (len(part), -1))
    key, value = (_by_head(part[..., kind, :]) for kind in (1, 2))
    return functional.relu(key).transpose(2, 3) @ functional.pad(value, (0, 1), value=1.0)


def apply_attention(attn, x: torch.Tensor, maps: list[torch.Tensor], sums: list[torch.Tensor]) -> torch.Tensor:
    """The attention's output [B, C, H, W] for its input ``x``; ``maps`` and ``sums`` are of its scales."""
    mixed = x.new_empty(*maps[0].shape[:3], len(maps), maps[0].shape[3] // 3)
    for number, (scale, total) in enumerate(zip(maps, sums)):
        parts = _steps(attn, scale)
        for part, out in zip(parts, mixed[:, :, :, number].split(parts[0].shape[1], dim=1)):
            _attend(attn, part[..., 0, :], total, out)
    out = attn.to_out(mixed.flatten(3)).movedim(-1, 1)
    return add_normed(attn.norm_out, out, out, x if attn.residual_connection else None)


def _attend(attn, query: torch.Tensor, total: torch.Tensor, out: torch.Tensor) -> None:
    """Attention of a part's queries [B, h, W, heads, d] to sums, into ``out`` [B, h, W, heads d]."""
    if card_layers.few_launches(query):
        apart = out.unflatten(3, query.shape[3:]).flatten(1, 2)
        card_layers.attend(query.flatten(1, 2), total.flatten(0, 1), apart, attn.eps)
        return
    wide = functional.relu(_by_head(query)) @ total
    values = (wide[..., :-1] / (wide[..., -1:] + attn.eps)).transpose(1, 2).flatten(2)
    out.copy_(values.unflatten(1, out.shape[1:3]))


class FastEncoder:
    """Encoder of AutoencoderDC."""

    def forward(self, hidden_states):
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        x = channels_last(self.conv_in(channels_last(hidden_states)))
        for stage in self.down_blocks:
            for layer in stage:
                x = layer(x)
        out = self.conv_out(x)
        return out.add_(x.unflatten(1, (out.shape[1], -1)).mean(2)) if self.out_shortcut else out


class FastDecoder:
    """Decoder of AutoencoderDC."""

    norm_out: torch.nn.Module
    conv_act: torch.nn.Module
    conv_out: torch.nn.Module

    def forward(self, hidden_states):
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        x = channels_last(hidden_states)
        h = channels_last(self.conv_in(x))
        if self.in_shortcut:
            h += x.repeat_interleave(self.in_shortcut_repeats, dim=1)
        for stage in reversed(self.up_blocks):
            for layer in stage:
                h = layer(h)
        return self._pixels(h)

    def _pixels(self, x: torch.Tensor) -> torch.Tensor:
        made, up = [], 2 if hasattr(self.conv_out, "interpolate") else 1
        for _, wider, inside in strips(x, x.shape[2], x.numel() // x.shape[2], 1):
            part = x[:, :, wider]
            normed = activated(self.conv_act, add_normed(self.norm_out, part, torch.empty_like(part)))
            made.append(self.conv_out(normed)[:, :, scaled(inside, up)])
        return torch.cat(made, dim=2) if len(made) > 1 else made[0]


def _has_norm(norm) -> bool:
    return type(norm).__name__ == "RMSNorm" and norm.weight is not None


def _of_four(number: int) -> bool:
    return number % 4 == 0 or number in (1, 2)


class Fast(NamedTuple):
    """The class with the forward, and which layers it is for."""

    forward: type
    suits: Callable[[Any], bool]


FAST = {
    "Encoder": Fast(FastEncoder, lambda part: True),
    "Decoder": Fast(FastDecoder, lambda part: _has_norm(part.norm_out)),
    "ResBlock": Fast(FastResBlock, lambda part: _has_norm(part.norm)),
    "DCUpBlock2d": Fast(FastUpBlock, lambda part: part.interpolation_mode == "nearest" and _of_four(part.repeats)),
    "DCDownBlock2d": Fast(FastDownBlock, lambda part: _of_four(part.group_size)),
    "GLUMBConv": Fast(FastFeedForward, lambda part: _has_norm(part.norm) and part.residual_connection),
}
"""By the name of diffusers' class."""


DIFFUSERS_PROCESSOR = "SanaMultiscaleAttnProcessor2_0"


def replace_forward(part: torch.nn.Module, table: dict[str, Fast]) -> None:
    """Give a layer its forward of a table like FAST, if it is one that it is for."""
    row = table.get(type(part).__name__)
    if row and row.suits(part):
        use_class(part, row.forward)


def use_fast_dc_ae(module: torch.nn.Module) -> torch.nn.Module:
    """Give an AutoencoderDC's layers the forward of this file, in place.

    A layer that is not as in published models keeps diffusers' forward.
    """
    for part in module.modules():
        replace_forward(part, FAST)
        if type(getattr(part, "processor", None)).__name__ == DIFFUSERS_PROCESSOR and _has_norm(part.norm_out):
            part.processor = MultiscaleAttention(part.processor)
    return module
