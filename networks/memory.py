"""Memory of a pass without the weights: bytes from shapes and from the widths of a model's stages.

Measured with benchmarks/memory.py, which traces PyTorch's allocations; the workspace of kernels is not
included. ``itemsize``: bytes per value in the compute dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .card_layers import shared_values
from .fast_autoencoder import STRIP_ON_DEVICES
from .fast_layers import TOKENS_ON_DEVICES
from .latent_spaces import LTX2, WAN
from .tiling import halos

OUT_OF_MEMORY = (
    *("out of memory", "not enough memory", "can't allocate memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "HIPBLAS_STATUS_ALLOC_FAILED"),
)
"""What a RuntimeError says where there was too little memory: of MPS, of a driver, of libraries, of a processor."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory was not enough: torch.OutOfMemoryError (CUDA, ROCm), or a RuntimeError that says so."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, torch.OutOfMemoryError) or any(part.lower() in words.lower() for part in OUT_OF_MEMORY)


CAPTION = 300
"""The assumed number of prompt tokens if it is not known yet: SANA's maximum."""


@dataclass(frozen=True)
class TransformerMemory:
    """One call of a SANA transformer, as fast_layers.py runs it on a card. The peak is at one of these.

    - In a block's feed-forward (GLUMBConv): its two halves of ``mlp_ratio`` maps each, before and after its
      convolution, of all tokens of an image and of a few frames of a video.
    - In linear attention: keys and values beside the tokens, and float32 copies of a few tokens. Of small images the
      blocks share these, beside all of it.
    - Where the prompt is normalised in float32, with fewer tokens than the prompt has.
    - With ``casting`` (weights are cast at each use) where the largest weights are cast.

    What ``layers`` blocks read of the prompt is kept beside all of it, from one step of a run to the next. Per-token
    timesteps (image to video) add seven vectors of the model's width to each token.
    """

    width: int
    mlp_ratio: float
    caption_channels: int
    patch: tuple[int, int, int]
    casting: bool = False
    layers: int = 0
    head: int = 32

    def step(self, shape, itemsize: int, captions: int = CAPTION, timed: bool = False) -> int:
        """``shape``: [B, C, H, W] or [B, C, F, H, W] of the latents in one call; ``timed``: per-token timesteps."""
        batch, channels = shape[:2]
        cells, float32 = math.prod(shape[2:]), 4 / itemsize
        tokens = batch * cells // math.prod(self.patch)
        prompt, halves = batch * captions, 2 * self.mlp_ratio
        kept, read = tokens * (7 if timed else 0), 2 * self.layers * prompt
        wide, copied = self._tokens_at_a_time(shape, tokens), min(tokens, TOKENS_ON_DEVICES)
        shared = shared_values(tokens, batch, 1, self.head) * float32 if len(shape) == 4 else 0
        copies = shared + tokens * float32 if shared else copied * 2.5 * float32
        widths = [
            kept + tokens * (4 if len(shape) == 5 else 3) + wide * 2 * halves + read + shared,
            kept + tokens * 6 + copies + read,
            kept + tokens * 1.5 + prompt * (1 + 2 * float32),
        ]
        if self.casting:
            widths.append(kept + tokens * 4 + wide * halves + read + halves * self.width + shared)
            widths.append(6 * self.width)
        latents = batch * (2 * channels * cells + self.caption_channels * captions)
        return int(itemsize * (self.width * max(widths) + latents))

    def _tokens_at_a_time(self, shape, tokens: int) -> int:
        """The tokens whose wide maps exist at the same time in the feed-forward: all, or those of whole frames."""
        if len(shape) == 4:
            return tokens
        frame = math.prod(shape[3:]) // math.prod(self.patch[1:])
        return min(tokens, max(1, TOKENS_ON_DEVICES // frame) * frame)


def transformer_memory(module, patch: tuple[int, int, int], casting: bool = False) -> TransformerMemory:
    """The memory of one of diffusers' SANA transformers."""
    config = module.config
    width = config.num_attention_heads * config.attention_head_dim
    sizes = width, config.mlp_ratio, config.caption_channels
    return TransformerMemory(*sizes, patch, casting, config.num_layers, config.attention_head_dim)


@dataclass(frozen=True)
class Stage:
    """A stage of DC-AE with ``channels`` channels; ``cell``: the width and height of its cells in pixels."""

    attends: bool
    channels: int
    cell: int

    def bytes_of(self, pixels: int, itemsize: int) -> int:
        """A block that attends: twice its feed-forward, which is eight times as wide, its input, and that before.

        A block of convolutions: input and output, and a strip between them twice.
        """
        values = pixels * self.channels // self.cell**2
        if self.attends:
            return 18 * itemsize * values
        return 2 * itemsize * (values + min(values, STRIP_ON_DEVICES))


@dataclass(frozen=True)
class ImageMemory:
    """DC-AE, one image at a time; the peak is that of the stage that needs most."""

    encoder: tuple[Stage, ...]
    decoder: tuple[Stage, ...]
    ratio: int
    halos: tuple[int, int]
    """The halo of a tile in pixels, for the encoder's and the decoder's full-resolution layers."""

    def encode(self, shape, itemsize: int) -> int:
        """``shape`` [..., H, W] in pixels."""
        return _bytes(self.encoder, shape[-2] * shape[-1], itemsize)

    def decode(self, shape, itemsize: int) -> int:
        """``shape`` [..., h, w] in latent cells."""
        return _bytes(self.decoder, shape[-2] * shape[-1] * self.ratio**2, itemsize)

    def encode_in_tiles(self, height: int, width: int, side: int, itemsize: int) -> int:
        """An image of ``height`` x ``width`` pixels in tiles of ``side``: one tile, and one map between stages."""
        return self._in_tiles(self.encoder, self.halos[0], height, width, side, itemsize)

    def decode_in_tiles(self, height: int, width: int, side: int, itemsize: int) -> int:
        return self._in_tiles(self.decoder, self.halos[1], height, width, side, itemsize)

    def _in_tiles(self, stages, halo, height, width, side, itemsize) -> int:
        grown = math.prod(_grown(length, side, halo) for length in (height, width))
        kept = max((stage.channels / stage.cell**2 for stage in stages if stage.attends), default=0)
        return _bytes(stages, grown, itemsize) + int(height * width * kept * itemsize)


def _grown(length: int, side: int, halo: int) -> int:
    """A tile's length: tiles are of equal size, and have a halo next to other tiles."""
    count = -(-length // side)
    return min(length, -(-length // count) + halo * min(count - 1, 2))


def _bytes(stages: tuple[Stage, ...], pixels: int, itemsize: int) -> int:
    return max(stage.bytes_of(pixels, itemsize) for stage in stages)


@dataclass(frozen=True)
class VideoMemory:
    """A video autoencoder that runs on a few frames at a time (streaming.py).

    ``encoder``, ``decoder``: values per pixel of a frame and channel of the first stage, for 1, 2, … latent
    frames; longer videos need as much as the last.
    """

    encoder: tuple[float, ...]
    decoder: tuple[float, ...]
    encoder_width: int
    decoder_width: int
    ratio: int
    temporal_ratio: int

    def encode(self, shape, itemsize: int) -> int:
        """``shape`` [..., F, H, W] in pixels."""
        frames = (shape[-3] - 1) // self.temporal_ratio + 1
        return int(shape[-2] * shape[-1] * _at(self.encoder, frames) * self.encoder_width * itemsize)

    def decode(self, shape, itemsize: int) -> int:
        """``shape`` [..., f, h, w] in latent cells."""
        pixels = shape[-2] * shape[-1] * self.ratio**2
        return int(pixels * _at(self.decoder, shape[-3]) * self.decoder_width * itemsize)


def _at(values: tuple[float, ...], frames: int) -> float:
    return values[min(frames, len(values)) - 1]


WAN_MEASURED = ((7.7, 30.6, 31.3), (4.2, 25.0, 42.7))
LTX2_MEASURED = ((0.32, 1.53, 3.18, 3.45, 4.55), (0.31, 1.54, 2.77, 3.38, 4.1, 4.1, 4.2))
"""Measured values of the published encoder and decoder, by latent frames."""


def vae_memory(module, spec) -> ImageMemory | VideoMemory:
    """The memory of one of diffusers' autoencoders with its VaeSpec."""
    config, ratios = module.config, (spec.spatial_ratio, spec.temporal_ratio)
    if spec.space is WAN:
        return VideoMemory(*WAN_MEASURED, config.base_dim, config.decoder_base_dim or config.base_dim, *ratios)
    if spec.space is LTX2:
        return VideoMemory(*LTX2_MEASURED, config.block_out_channels[0], config.decoder_block_out_channels[0], *ratios)
    sides = ("encoder", config.encoder_block_types), ("decoder", config.decoder_block_types)
    encoder, decoder = (
        _stages(getattr(config, f"{side}_block_out_channels"), kinds, getattr(config, f"{side}_layers_per_block"))
        for side, kinds in sides
    )
    return ImageMemory(encoder, decoder, spec.spatial_ratio, halos(module))


def _stages(channels, kinds, layers) -> tuple[Stage, ...]:
    """The stages that have layers: DC-AE-Lite's first has none."""
    kinds = [kinds] * len(channels) if isinstance(kinds, str) else kinds
    rows = enumerate(zip(channels, kinds, layers))
    return tuple(Stage(kind == "EfficientViTBlock", width, 2**index) for index, (width, kind, count) in rows if count)
