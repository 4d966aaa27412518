"""The Wan VAE, and LTX-2's convolutions, in fewer passes over memory, to the same answer.

Layers are diffusers' own (autoencoder_kl_wan.py, autoencoder_kl_ltx2.py) with another forward, which calls the same
convolutions: layers that
cast, offloading, tiles and pieces along time act as before. It differs in this:

- Maps are channels last, and a norm and its activation are one pass, in float32 and rounded once, a few rows at a time.
- They are written behind the cached frames, so a causal convolution reads one map that nobody copied.
- A convolution pads rows and columns itself. Over the first frame it leaves out its weights for frames before it.
- An upsampled map is as narrow as its dtype, and nothing is kept longer than the next layer needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from .card_layers import few_launches, normed
from .fast_autoencoder import Fast, replace_forward, rows_of_step, twice_as_large
from .fast_layers import use_class

CACHE_FRAMES = 2
"""Frames that a convolution over three keeps for the next piece."""


WEIGHTS = 2**23
"""Values of a convolution's weights at once, in LTX-2."""

ROOMY = 2
"""An input so many times smaller than the weights is as fast channels last as channels first."""


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """[B, C, F, H, W] with the channels of a cell side by side; itself where it is so already, or on Apple's GPU."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last_3d)


def _is_left_alone() -> bool:
    """Whether diffusers' own forward is wanted: for training, and where torch.compile finds its own passes."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def empty_map(like: torch.Tensor, frames: int, rows: int = 0, columns: int = 0) -> torch.Tensor:
    """A map of so many frames, with so many more rows and columns than ``like`` [B, C, F, H, W], in its layout."""
    size = *like.shape[:2], frames, like.shape[3] + rows, like.shape[4] + columns
    layout = torch.channels_last_3d if like.stride(1) == 1 else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def float_steps(x: torch.Tensor, out: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few rows of ``x`` [B, C, F, H, W] at a time, copied in float32, and where they are in ``out``."""
    rows = rows_of_step(x, 3)
    for given, target in zip(x.split(rows, dim=3), out.split(rows, dim=3)):
        yield given.to(torch.float32, copy=True), target


def activated(activation, wide: torch.Tensor) -> torch.Tensor:
    return functional.silu(wide, inplace=True) if type(activation) is torch.nn.SiLU else activation(wide)


def norm_and_activate(norm, activation, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """WanRMS_norm over the channels of ``x`` [B, C, F, H, W] and an activation, into ``out``, which may be ``x``."""
    if few_launches(x) and not torch.is_tensor(norm.bias):
        return _normed_on_card(x, norm.gamma.flatten().to(x), SMALLEST_LENGTH**2 / x.shape[1], activation, out)
    gain = norm.gamma.to(x.device, torch.float32) * norm.scale
    bias = norm.bias.to(x.device, torch.float32) if torch.is_tensor(norm.bias) else None
    for wide, target in float_steps(x, out):
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        wide.div_(length.clamp_(min=1e-12)).mul_(gain)
        target.copy_(activated(activation, wide if bias is None else wide.add_(bias)))
    return out


def rms_and_activate(norm, activation, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The same for LTX-2's PerChannelRMSNorm, which has no weights."""
    if few_launches(x):
        return _normed_on_card(x, None, norm.eps, activation, out)
    for wide, target in float_steps(x, out):
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        wide.div_(length.square_().div_(x.shape[1]).add_(norm.eps).sqrt_())
        target.copy_(activated(activation, wide))
    return out


SMALLEST_LENGTH = 1e-12
"""Of a vector that WanRMS_norm divides by its length; on a card its square is added, which changes no longer one."""


def _normed_on_card(x: torch.Tensor, weight, eps: float, activation, out: torch.Tensor) -> torch.Tensor:
    """A norm of one kernel, and an activation that writes where its result is wanted."""
    made = normed(x.movedim(1, -1), weight, eps).movedim(-1, 1)
    if type(activation) is torch.nn.SiLU:
        torch.ops.aten.silu.out(made, out=out)
    else:
        out.copy_(activation(made))
    return out


class FastCausalConv:
    """WanCausalConv3d; ``over`` is for a map that has the cached frames in front already."""

    _padding: tuple[int, ...]
    kernel_size: tuple[int, ...]

    def forward(self, x, cache_x=None):
        if _is_left_alone():
            return super().forward(x, cache_x)
        if cache_x is None or not self._padding[4]:
            return self.over(x, 0)
        return self.over(torch.cat([cache_x.to(x.device), x], dim=2), cache_x.shape[2])

    def over(self, x: torch.Tensor, cached: int) -> torch.Tensor:
        """``cached``: frames of ``x`` that are before the piece; those missing are zeros."""
        missing = max(0, self._padding[4] - cached)
        if missing and x.shape[2] + missing > self.kernel_size[0]:
            x = functional.pad(x, (0, 0, 0, 0, missing, 0))
        return channels_last(super(self._causal_class(), self).forward(x))  # type: ignore[misc]

    def _conv_forward(self, input, weight, bias, *rest, **named):
        """What every kind of layer calls with the weight it has got ready; on a card the layer's own way."""
        if _is_left_alone():
            return super()._conv_forward(input, weight, bias, *rest, **named)
        weight = weight[:, :, -min(weight.shape[2], input.shape[2]) :]
        padding = 0, self._padding[2], self._padding[0]
        if input.device.type == "cpu":
            return functional.conv3d(input, weight, bias, self.stride, padding, self.dilation, self.groups)
        usual, self.padding = self.padding, padding  # a layer's own way reads it: ComfyUI goes around a fault of cuDNN
        try:
            return super()._conv_forward(input, weight, bias, *rest, **named)
        finally:
            self.padding = usual

    def _causal_class(self) -> Any:
        return next(k for k in type(self).__mro__ if k.__name__ == "WanCausalConv3d" and "forward" in vars(k))


class FastResidualBlock:
    """WanResidualBlock, its dropout left out: it is for training."""

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        if _is_left_alone():
            return super().forward(x, feat_cache, feat_idx)
        x = channels_last(x)
        h = self.conv1.over(*behind_cached(self.norm1, self.nonlinearity, x, feat_cache, feat_idx))
        h, cached = behind_cached(self.norm2, self.nonlinearity, h, feat_cache, feat_idx)
        h = self.conv2.over(h, cached)
        return h.add_(self.conv_shortcut(x))


def behind_cached(norm, activation, x: torch.Tensor, feat_cache, feat_idx) -> tuple[torch.Tensor, int]:
    """What a causal convolution reads: its cached frames, and ``x`` normalised and activated, if there is a norm.

    Beside it the number of cached frames; they are replaced.
    """
    kept = None if feat_cache is None else feat_cache[feat_idx[0]]
    cached = 0 if kept is None else kept.shape[2]
    wide = empty_map(x, cached + x.shape[2])
    if cached:
        wide[:, :, :cached] = kept
    if norm is None:
        wide[:, :, cached:] = x
    else:
        norm_and_activate(norm, activation, x, wide[:, :, cached:])
    if feat_cache is not None:
        feat_cache[feat_idx[0]] = wide[:, :, -CACHE_FRAMES:].clone()
        feat_idx[0] += 1
    return wide, cached


class FastUpsample:
    """WanResample that upsamples."""

    time_conv: Any

    def forward(self, x, feat_cache=None, feat_idx=(0,)):
        if _is_left_alone():
            return super().forward(x, feat_cache, feat_idx)
        x = channels_last(x)
        if self.mode == "upsample3d" and feat_cache is not None:
            x = self._twice_as_long(x, feat_cache, feat_idx)
        batch, _, frames = x.shape[:3]
        wide = self.resample[1](twice_as_large(x.movedim(2, 1).flatten(0, 1)))
        return wide.unflatten(0, (batch, frames)).movedim(1, 2)

    def _twice_as_long(self, x: torch.Tensor, feat_cache, feat_idx) -> torch.Tensor:
        """Two frames for each, but of a video's first piece, after which zeros are cached."""
        index = feat_idx[0]
        kept = feat_cache[index]
        feat_idx[0] += 1
        if kept is None:
            feat_cache[index] = "Rep"
            return x
        wide = x if isinstance(kept, str) else torch.cat([kept.to(x.device), x], dim=2)
        last = wide[:, :, -CACHE_FRAMES:]
        feat_cache[index] = functional.pad(last, (0, 0, 0, 0, CACHE_FRAMES - last.shape[2], 0)).clone()
        pairs = self.time_conv.over(wide, wide.shape[2] - x.shape[2]).unflatten(1, (2, -1))
        return pairs.permute(0, 3, 1, 4, 5, 2).flatten(1, 2).movedim(-1, 1)


class FastWanDecoder:
    """WanDecoder3d of Wan 2.1."""

    def forward(self, x, feat_cache=None, feat_idx=(0,), first_chunk=False):
        if torch.is_grad_enabled():
            return super().forward(x, feat_cache, feat_idx, first_chunk)
        x = self.conv_in.over(*behind_cached(None, None, channels_last(x), feat_cache, feat_idx))
        x = self.mid_block(x, feat_cache=feat_cache, feat_idx=feat_idx)
        for block in self.up_blocks:
            for layer in (*block.resnets, *(block.upsamplers or ())):
                x = layer(x, feat_cache, feat_idx)
        x, cached = behind_cached(self.norm_out, self.nonlinearity, x, feat_cache, feat_idx)
        return self.conv_out.over(x, cached)


def reflected(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[B, C, F, H, W] with so many more rows and columns on each side, in the layout of ``x``: torch's changes it."""
    out = empty_map(x, x.shape[2], 2 * rows, 2 * columns)
    out[..., rows : rows + x.shape[3], columns : columns + x.shape[4]] = x
    for dim, count in ((3, rows), (4, columns)):
        for n in range(1, count + 1):
            for edge, sign in ((count, 1), (out.shape[dim] - 1 - count, -1)):
                out.select(dim, edge - sign * n).copy_(out.select(dim, edge + sign * n))
    return out


class FastConv3d:
    """LTX-2's convolutions: on a processor by parts of their weights, and channels last where those are small.

    oneDNN copies the weights of a call into another layout. Of all at once that is 220 MB in the published
    decoder, and slower.
    """

    def _conv_forward(self, input, weight, bias, *rest, **named):
        if torch.is_grad_enabled() or input.device.type not in ("cpu", "meta"):
            return super()._conv_forward(input, weight, bias, *rest, **named)
        input = channels_last(input) if input.numel() * ROOMY >= weight.numel() else input
        padding = self.padding
        if self.padding_mode == "reflect":
            input, padding = reflected(input, *padding[1:]), 0
        rows = max(1, WEIGHTS // weight[0].numel())
        biases = [None] * len(weight) if bias is None else bias.split(rows)
        parts = [
            functional.conv3d(input, part, add, self.stride, padding, self.dilation)
            for part, add in zip(weight.split(rows), biases)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


FAST = {
    "WanCausalConv3d": Fast(FastCausalConv, lambda part: part.padding_mode == "zeros"),
    "WanResidualBlock": Fast(FastResidualBlock, lambda part: part.norm1.channel_first),
    "WanResample": Fast(FastUpsample, lambda part: part.mode.startswith("upsample")),
    "WanDecoder3d": Fast(FastWanDecoder, lambda part: all(type(b).__name__ == "WanUpBlock" for b in part.up_blocks)),
}
"""By the name of diffusers' class."""


def _is_padded(part) -> bool:
    """With zeros, or with reflected rows and columns: what this file computes."""
    return part.padding_mode == "zeros" or (part.padding_mode == "reflect" and part.padding[0] == 0)


def use_fast_wan(module: torch.nn.Module) -> torch.nn.Module:
    """Give an AutoencoderKLWan's layers the forward of this file, in place."""
    for part in module.modules():
        replace_forward(part, FAST)
    return module


def use_fast_ltx2(module: torch.nn.Module) -> torch.nn.Module:
    """Give the convolutions of an AutoencoderKLLTX2Video, on any host, the forward of this file, in place."""
    for part in module.modules():
        if isinstance(part, torch.nn.Conv3d) and part.groups == 1 and _is_padded(part):
            use_class(part, FastConv3d)
    return module
