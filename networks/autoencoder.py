"""Encode and decode LATENTs, for every autoencoder and every host.

A host supplies a Run: device, dtype and memory management. If memory runs out, the pass is repeated in
tiles. Tiles of images are exact (tiling.py); tiles of videos overlap and are blended (streaming.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch
from einops import rearrange

from . import fast_autoencoder, fast_video_autoencoder, streaming
from .latent_spaces import LATENT_SPACES, VaeSpec, by_channel, space_of
from .live_decoding import LiveDecoding
from .memory import vae_memory
from .streaming import Tiles
from .tiling import Tiling

logger = logging.getLogger(__name__)

IMAGE_TILE = 1024
"""The default tile size of images, in pixels."""

VIDEO_TILE, VIDEO_OVERLAP = 256, 64
"""Tile size and overlap in pixels for video frames that do not fit into memory; ComfyUI's defaults."""


FAST_LAYERS = {
    "AutoencoderDC": fast_autoencoder.use_fast_dc_ae,
    "AutoencoderKLWan": fast_video_autoencoder.use_fast_wan,
    "AutoencoderKLLTX2Video": fast_video_autoencoder.use_fast_ltx2,
}


def use_fast_autoencoder(module: torch.nn.Module) -> torch.nn.Module:
    """Give the layers of one of diffusers' autoencoders a faster forward, in place."""
    return FAST_LAYERS.get(type(module).__name__, lambda same: same)(module)


class Run(Protocol):
    """What a host supplies for one pass of an autoencoder.

    ``device`` and ``dtype`` to compute on and in; ``output`` and ``output_dtype``: where results come
    together, and as what.
    """

    device: torch.device
    dtype: torch.dtype
    output: torch.device
    output_dtype: torch.dtype

    def report(self, done: int, total: int) -> None:
        """Progress: ``done`` of ``total`` parts; raises if the user interrupted the run."""

    def make_room(self, needed: int) -> None:
        """Move the autoencoder to the device and free ``needed`` more bytes there."""

    def fits(self, needed: int) -> bool:
        """Whether the device could hold ``needed`` bytes at all."""

    def ran_out_of_memory(self, error: Exception) -> bool:
        """Whether an exception says that the device's memory was not enough."""

    def free_memory(self) -> None:
        """Free the memory of a pass that ran out of memory."""


class Autoencoder:
    """One of diffusers' autoencoders and its spec. LATENTs are ComfyUI's; pixels are in [0, 1]."""

    def __init__(self, module: torch.nn.Module, spec: VaeSpec):
        self.module, self.spec, self.memory = module, spec, vae_memory(module, spec)

    @torch.no_grad()
    def decode(self, samples: torch.Tensor, run: Run, tile: int | None = None, overlap: int | None = None):
        """A LATENT's samples to images [B, H, W, 3], or to videos [B, F, H, W, 3].

        ``tile``: decode in tiles of this many pixels. ``overlap``: in pixels, for videos only; None is a quarter
        of ``tile``. ValueError for a latent of another autoencoder.
        """
        raw = to_autoencoder(self.spec, samples)
        if self.spec.is_video:
            tiles = self._video_tiles(tile, overlap)
            return streaming.gather(
                self.spec, raw, lambda one: self._frames(one, run, tiles), run.output, run.output_dtype
            )
        return rearrange(to_unit_range(self._images("decode", raw, run, tile)), "b c h w -> b h w c")

    def frames(self, samples: torch.Tensor, run: Run) -> Iterator[torch.Tensor]:
        """The frames of each video in order, a few at a time: [n, H, W, 3]."""
        for one in to_autoencoder(self.spec, samples).split(1):
            yield from self._frames(one, run, None)

    def stream(self, blocks: Iterator[torch.Tensor], total: int, run: Run) -> Iterator[torch.Tensor]:
        """The frames of one video whose LATENT comes in ``blocks`` [1, C, f, h, w], ``total`` latent frames in all."""
        make_tiles = partial(self._video_tiles, VIDEO_TILE, VIDEO_OVERLAP)
        live, done = LiveDecoding(self.module, self.spec, run, make_tiles, self.memory.decode), 0
        for block in blocks:
            done += block.shape[2]
            for frames in live.frames(to_autoencoder(self.spec, block), done >= total):
                yield self._shown(frames, run)
            run.report(done, total)

    def _shown(self, frames: torch.Tensor, run: Run) -> torch.Tensor:
        """Frames [1, 3, n, H, W] of the autoencoder as an IMAGE."""
        pixels = frames[0].to(run.output, run.output_dtype, copy=True)
        return rearrange(to_unit_range(pixels), "c f h w -> f h w c")

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, run: Run, tile: int | None = None, overlap: int | None = None):
        """Images [B, H, W, 3] or videos [B, F, H, W, 3] to a LATENT's samples [B, C, ...].

        A video autoencoder takes images as the frames of one video. Sides that are not a multiple of the latent
        cell are centre-cropped, as in ComfyUI; ValueError if nothing is left.
        """
        pixels = crop_to_cells(self.spec, pixels[..., :3])
        if self.spec.is_video:
            raw = self._latents(pixels if pixels.ndim == 5 else pixels[None], run, self._video_tiles(tile, overlap))
        else:
            raw = self._images("encode", rearrange(pixels, "b h w c -> b c h w") * 2.0 - 1.0, run, tile)
        return from_autoencoder(self.spec, raw.to(run.output, run.output_dtype))

    def _images(self, half: str, given: torch.Tensor, run: Run, tile: int | None) -> torch.Tensor:
        """``encode`` or ``decode`` images [B, C, h, w] one by one; in tiles after the first that does not fit."""
        made = []
        for number, one in enumerate(given.split(1)):
            whole = self._whole_image(half, one, run) if tile is None else None
            if whole is None:
                tile = tile or IMAGE_TILE
                whole = self._tiled_image(half, one, run, tile, _report_of(run, number, len(given)))
            made.append(whole.to(run.output, run.output_dtype))
        return made[0] if len(made) == 1 else torch.cat(made)

    def _whole_image(self, half: str, given: torch.Tensor, run: Run) -> torch.Tensor | None:
        """None if it does not fit into memory."""
        needed = getattr(self.memory, half)(given.shape, run.dtype.itemsize)
        if not run.fits(needed):
            return None
        run.make_room(needed)
        try:
            return getattr(self.module, half)(given.to(run.device, run.dtype), return_dict=False)[0]
        except Exception as error:
            if not run.ran_out_of_memory(error):
                raise
            logger.warning("Out of memory: the image is %sd in tiles of %d pixels.", half, IMAGE_TILE)
        run.free_memory()  # not above: an exception that is being handled holds what its pass made
        return None

    def _tiled_image(self, half: str, given: torch.Tensor, run: Run, tile: int, report: Callable) -> torch.Tensor:
        cell = self.spec.spatial_ratio if half == "decode" else 1
        height, width = (length * cell for length in given.shape[-2:])
        run.make_room(getattr(self.memory, f"{half}_in_tiles")(height, width, tile, run.dtype.itemsize))
        tiling = Tiling(tile, run.device, run.dtype, report, run.output)
        return getattr(tiling, half)(self.module, given)

    def _video_tiles(self, tile: int | None, overlap: int | None) -> Tiles | None:
        """Tiles of ``tile`` pixels, in latent cells."""
        if tile is None:
            return None
        size = max(2, tile // self.spec.spatial_ratio)
        overlap = size // 4 if overlap is None else overlap // self.spec.spatial_ratio
        return Tiles(size, min(overlap, size - 1))

    def _frames(self, raw: torch.Tensor, run: Run, tiles: Tiles | None) -> Iterator[torch.Tensor]:
        """Frames of one video; repeated in tiles if a whole frame does not fit into memory."""
        done = 0
        for attempt in (tiles, tiles or self._video_tiles(VIDEO_TILE, VIDEO_OVERLAP)):
            try:
                for number, piece in enumerate(self._decoded_pieces(raw, run, attempt)):
                    if number >= done:
                        done += 1
                        yield piece
                return
            except Exception as error:
                if attempt is not None or not run.ran_out_of_memory(error):
                    raise
                logger.warning("Out of memory while decoding: retrying in tiles of %d pixels.", VIDEO_TILE)
            run.free_memory()

    def _decoded_pieces(self, raw: torch.Tensor, run: Run, tiles: Tiles | None) -> Iterator[torch.Tensor]:
        sides = raw.shape[3:] if tiles is None else [min(side, tiles.size) for side in raw.shape[3:]]
        run.make_room(self.memory.decode((*raw.shape[:3], *sides), run.dtype.itemsize))
        shown, total = 0, raw.shape[2]
        for piece in streaming.decode_pieces(self.module, self.spec, raw, run.device, run.dtype, tiles):
            pixels = self._shown(piece, run)
            shown = min(shown + streaming.PIECE, total)
            run.report(shown, total)
            yield pixels

    def _latents(self, videos: torch.Tensor, run: Run, tiles: Tiles | None) -> torch.Tensor:
        for attempt in (tiles, tiles or self._video_tiles(VIDEO_TILE, VIDEO_OVERLAP)):
            size = max(videos.shape[2:4]) if attempt is None else attempt.size * self.spec.spatial_ratio
            sides = (min(side, size) for side in videos.shape[2:4])
            run.make_room(self.memory.encode((*videos.shape[:2], *sides), run.dtype.itemsize))
            try:
                return streaming.encode_pieces(
                    self.module, self.spec, videos, run.device, run.dtype, attempt, run.report
                )
            except Exception as error:
                if attempt is not None or not run.ran_out_of_memory(error):
                    raise
                logger.warning("Out of memory while encoding: retrying in tiles of %d pixels.", VIDEO_TILE)
            run.free_memory()
        raise AssertionError("the second attempt returns or raises")


def _report_of(run: Run, number: int, count: int) -> Callable[[int, int], None]:
    """Reports the tiles of image ``number`` as a part of what all ``count`` images have."""
    return lambda done, total: run.report(number * total + done, count * total)


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of about [-1, 1] to [0, 1], in place."""
    return pixels.add_(1.0).div_(2.0).clamp_(0.0, 1.0)


def to_autoencoder(spec: VaeSpec, latent: torch.Tensor) -> torch.Tensor:
    """A LATENT's samples [B, C, ...] as the module's latents; ValueError for those of another autoencoder."""
    check_latent(spec, latent.shape)
    return latent * by_channel(spec.gain, latent) + by_channel(spec.offset, latent)


def from_autoencoder(spec: VaeSpec, raw: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`to_autoencoder`."""
    return (raw - by_channel(spec.offset, raw)) / by_channel(spec.gain, raw)


def check_latent(spec: VaeSpec, shape) -> None:
    """ValueError for a latent of another autoencoder; the message names the right one."""
    if len(shape) == (5 if spec.is_video else 4) and shape[1] == spec.latent_channels:
        return
    takes = f"{spec.latent_channels} channels" + (" and frames" if spec.is_video else "")
    found = (space_of(shape[1], len(shape) == 5) if len(shape) > 1 else None) or _by_channels(shape)
    right = f"decode it with {found.name}" if found else "decode it with the VAE of the model that made it"
    raise ValueError(f"the latent has the shape {list(shape)} and this VAE ({spec.name}) takes {takes}: {right}")


def _by_channels(shape):
    return next((row for row in LATENT_SPACES if len(shape) > 1 and row.channels == shape[1]), None)


def crop_to_cells(spec: VaeSpec, pixels: torch.Tensor) -> torch.Tensor:
    """Images or frames [..., H, W, C] centre-cropped to a multiple of the latent cell, as in ComfyUI.

    ValueError for a side of less than one cell.
    """
    for dim in (-3, -2):
        side = pixels.shape[dim]
        if side < spec.spatial_ratio:
            raise ValueError(f"the image is {side} pixels on a side; {spec.name} needs at least {spec.spatial_ratio}")
        remainder = side % spec.spatial_ratio
        pixels = pixels.narrow(dim, remainder // 2, side - remainder)
    return pixels
