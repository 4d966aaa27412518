"""AutoencoderKLLTX2Video in pieces along time, with the same result as in one pass.

Every convolution over time caches its last input frames. If the decoder is not causal, it also needs one
frame of lookahead, and the shortcut of a block is delayed by as much. The modules are diffusers' own
(autoencoder_kl_ltx2.py); only the order of computation along time differs.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce

from .fast_video_autoencoder import empty_map, rms_and_activate


class _Run:
    """The cache of each layer during one pass over a video."""

    def __init__(self, causal: bool):
        self.causal = causal
        self.memory: dict[object, torch.Tensor] = {}

    def park(self, device) -> None:
        self.memory = {key: kept.to(device) for key, kept in self.memory.items()}

    @property
    def nbytes(self) -> int:
        return sum(kept.numel() * kept.itemsize for kept in self.memory.values())

    def conv(self, layer, x: torch.Tensor, last: bool, norm=None, activation=None) -> torch.Tensor:
        """LTX2VideoCausalConv3d, which repeats the first and last frames only at the ends of the video.

        ``norm`` and ``activation`` of ``x`` come first; their result is written between the cached frames and those
        repeated.
        """
        length = layer.kernel_size[0]
        left, right = (length - 1, 0) if self.causal else ((length - 1) // 2, (length - 1) // 2)
        kept = self.memory.pop(layer, None)
        if kept is None and x.shape[2] == 0:
            return self._nothing(x, layer.conv.out_channels)
        before, after = (left if kept is None else kept.shape[2]), (right if last else 0)
        wide = empty_map(x, before + x.shape[2] + after)
        own = wide[:, :, before : before + x.shape[2]]
        own.copy_(x) if norm is None else rms_and_activate(norm, activation, x, own)
        wide[:, :, :before] = own[:, :, :1] if kept is None else kept
        if after:
            wide[:, :, -after:] = wide[:, :, -after - 1 : -after]
        if not last:
            self.memory[layer] = wide[:, :, max(0, wide.shape[2] - (length - 1)) :].clone()
        return layer.conv(wide) if wide.shape[2] >= length else self._nothing(x, layer.conv.out_channels)

    @staticmethod
    def _nothing(x: torch.Tensor, channels: int) -> torch.Tensor:
        return x.new_zeros(x.shape[0], channels, 0, *x.shape[3:])

    def waiting(self, key, x: torch.Tensor, count: int) -> torch.Tensor:
        """The next ``count`` frames of a branch that is ahead of another; the rest is cached."""
        if key in self.memory:
            x = torch.cat([self.memory.pop(key), x], dim=2)
        if x.shape[2] > count:
            self.memory[key] = x[:, :, count:].clone()
        return x[:, :, :count]

    def started(self, key, x: torch.Tensor) -> bool:
        """True once, for the first frames of a branch."""
        if x.shape[2] == 0 or (key, "started") in self.memory:
            return False
        self.memory[key, "started"] = x.new_zeros(0)
        return True

    def resnet(self, block, x: torch.Tensor, last: bool) -> torch.Tensor:
        h = self.conv(block.conv1, x, last, block.norm1, block.nonlinearity)
        h = self.conv(block.conv2, h, last, block.norm2, block.nonlinearity)
        if block.norm3 is not None:
            x = rearrange(block.norm3(rearrange(x, "b c f h w -> b f h w c")), "b f h w c -> b c f h w")
        if block.conv_shortcut is not None:
            x = block.conv_shortcut(x) if x.shape[2] else self._nothing(x, block.conv_shortcut.out_channels)
        return h.add_(self.waiting(block, x, h.shape[2]))

    def upsample(self, layer, x: torch.Tensor, last: bool) -> torch.Tensor:
        """LTX2VideoUpsampler3d: channels to space and time, without the first frames of the result."""
        h = self.conv(layer.conv, x, last)
        wide = _depth_to_space(h, layer.stride)
        if self.started(layer, wide):
            wide = wide[:, :, layer.stride[0] - 1 :]
        if not layer.residual:
            return wide
        repeats = layer.stride[0] * layer.stride[1] * layer.stride[2] // layer.upscale_factor
        residual = _depth_to_space(x, layer.stride).repeat(1, repeats, 1, 1, 1)
        if self.started((layer, "residual"), residual):
            residual = residual[:, :, layer.stride[0] - 1 :]
        return wide + self.waiting(layer, residual, wide.shape[2])

    def downsample(self, layer, x: torch.Tensor, last: bool) -> torch.Tensor:
        """LTX2VideoDownsampler3d: the first frames are repeated, then space and time to channels."""
        if self.started(layer, x):
            x = torch.cat([x[:, :, : layer.stride[0] - 1], x], dim=2)
        step = layer.stride[0]
        h = self.waiting_groups((layer, "h"), self.conv(layer.conv, x, last), step)
        residual = _space_to_depth(self.waiting_groups((layer, "x"), x, step), layer.stride)
        residual = reduce(residual, "b (c group) f h w -> b c f h w", "mean", group=layer.group_size)
        h = _space_to_depth(h, layer.stride)
        return h + self.waiting(layer, residual, h.shape[2])

    def waiting_groups(self, key, x: torch.Tensor, step: int) -> torch.Tensor:
        """The frames that complete groups of ``step``; the rest is cached."""
        if key in self.memory:
            x = torch.cat([self.memory.pop(key), x], dim=2)
        return self.waiting(key, x, x.shape[2] // step * step)


def _depth_to_space(x: torch.Tensor, stride) -> torch.Tensor:
    return rearrange(x, "b (c q p r) f h w -> b c (f q) (h p) (w r)", **_axes(stride))


def _space_to_depth(x: torch.Tensor, stride) -> torch.Tensor:
    return rearrange(x, "b c (f q) (h p) (w r) -> b (c q p r) f h w", **_axes(stride))


def _axes(stride) -> dict[str, int]:
    """A stride in frames, rows and columns by the letters of the patterns above."""
    return dict(zip("qpr", stride))


class _Coder:
    """What the decoder and the encoder have in common: the cache of their run."""

    run: _Run

    def park(self, device) -> None:
        self.run.park(device)

    @property
    def nbytes(self) -> int:
        return self.run.nbytes


class Ltx2Decoder(_Coder):
    """AutoencoderKLLTX2Video's decoder, a few latent frames at a time."""

    def __init__(self, module):
        self.decoder = module.decoder
        self.run = _Run(self.decoder.is_causal)

    def push(self, piece: torch.Tensor, last: bool) -> torch.Tensor:
        decoder, run = self.decoder, self.run
        x = run.conv(decoder.conv_in, piece, last)
        for block in decoder.mid_block.resnets:
            x = run.resnet(block, x, last)
        for stage in decoder.up_blocks:
            if stage.conv_in is not None:
                x = run.resnet(stage.conv_in, x, last)
            for layer in stage.upsamplers or ():
                x = run.upsample(layer, x, last)
            for block in stage.resnets:
                x = run.resnet(block, x, last)
        x = run.conv(decoder.conv_out, x, last, decoder.norm_out, decoder.conv_act)
        p = decoder.patch_size
        return rearrange(x, "b (c r p) f h w -> b c f (h p) (w r)", p=p, r=p)


class Ltx2Encoder(_Coder):
    """AutoencoderKLLTX2Video's encoder, a few frames at a time."""

    def __init__(self, module):
        self.encoder, self.channels = module.encoder, module.config.latent_channels
        self.run = _Run(self.encoder.is_causal)

    def push(self, piece: torch.Tensor, last: bool) -> torch.Tensor:
        encoder, run, p = self.encoder, self.run, self.encoder.patch_size
        x = rearrange(piece, "b c f (h p) (w r) -> b (c r p) f h w", p=p, r=p)
        x = run.conv(encoder.conv_in, x, last)
        for stage in encoder.down_blocks:
            for block in stage.resnets:
                x = run.resnet(block, x, last)
            for layer in stage.downsamplers or ():
                x = run.downsample(layer, x, last)
        for block in encoder.mid_block.resnets:
            x = run.resnet(block, x, last)
        x = run.conv(encoder.conv_out, x, last, encoder.norm_out, encoder.conv_act)
        return x[:, : self.channels]
