"""Encode and decode LATENTs, for every autoencoder and every host.

A host supplies a Run: device, dtype and memory management. If memory runs out, the pass is repeated in
smaller and smaller tiles. Tiles of images are exact (tiling.py); tiles of videos overlap and are blended
(streaming.py).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
from einops import rearrange

from . import fast_autoencoder, fast_video_autoencoder, streaming
from .accelerated import CompiledBlocks, accelerated
from .latent_spaces import LATENT_SPACES, VaeSpec, by_channel, space_of
from .live_decoding import LiveDecoding
from .memory import vae_memory
from .streaming import Tiles
from .tiling import Tiling

logger = logging.getLogger(__name__)

IMAGE_TILE = 1024
"""The default tile size of images, in pixels; where they do not fit, their halves are tried."""

VIDEO_TILE = 256
"""The same of video frames, whose tiles overlap by a quarter; ComfyUI's defaults."""

LEAST_TILE = 64
"""Pixels on a side of the smallest tiles that are tried."""


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

    def has_room(self, needed: int) -> bool:
        """Whether ``needed`` bytes are free on the device now."""

    def ran_out_of_memory(self, error: Exception) -> bool:
        """Whether an exception says that the device's memory was not enough."""

    def free_memory(self) -> None:
        """Free the memory of a pass that ran out of memory."""


class Autoencoder:
    """One of diffusers' autoencoders and its spec. LATENTs are ComfyUI's; pixels are in [0, 1]."""

    blocks: CompiledBlocks | None = None

    def __init__(self, module: torch.nn.Module, spec: VaeSpec):
        self.module, self.spec, self.memory = module, spec, vae_memory(module, spec)
        self.weights = sum(parameter.nbytes for parameter in module.parameters())

    def compiled(self, mode: str, device: torch.device) -> Autoencoder:
        """The same autoencoder with its decoder in a mode of Sana Compile.

        With graphs it stays as it is: its kernels take far longer than their launches.
        """
        made = copy.copy(self)
        chosen = accelerated(self.module, "off" if mode == "graphs" else mode, device, self.spec.name)
        made.blocks = chosen if isinstance(chosen, CompiledBlocks) else None
        return made

    @torch.no_grad()
    def decode(self, samples: torch.Tensor, run: Run, tile: int | None = None, overlap: int | None = None):
        """A LATENT's samples to images [B, H, W, 3], or to videos [B, F, H, W, 3].

        ``tile``: decode in tiles of this many pixels. ``overlap``: in pixels, for videos only; None is a quarter
        of ``tile``. ValueError for a latent of another autoencoder.
        """
        raw = to_autoencoder(self.spec, samples)
        if self.spec.is_video:
            return streaming.gather(
                self.spec, raw, lambda one: self._frames(one, run, tile, overlap), run.output, run.output_dtype
            )
        return rearrange(to_unit_range(self._images("decode", raw, run, tile)), "b c h w -> b h w c")

    def frames(self, samples: torch.Tensor, run: Run) -> Iterator[torch.Tensor]:
        """The frames of each video in order, a few at a time: [n, H, W, 3]."""
        for one in to_autoencoder(self.spec, samples).split(1):
            yield from self._frames(one, run, None, None)

    def stream(self, blocks: Iterator[torch.Tensor], total: int, run: Run) -> Iterator[torch.Tensor]:
        """The frames of one video whose LATENT comes in ``blocks`` [1, C, f, h, w], ``total`` latent frames in all."""
        sizes, make_tiles = [None, *_halves(VIDEO_TILE)], partial(self._video_tiles, overlap=None)
        needed = partial(self._frames_bytes, run=run)
        live, done = LiveDecoding(self.module, self.spec, run, sizes, make_tiles, needed, self.weights), 0
        for block in blocks:
            done += block.shape[2]
            for frames in self._compiled(live.frames(to_autoencoder(self.spec, block), done >= total)):
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
            raw = self._latents(pixels if pixels.ndim == 5 else pixels[None], run, tile, overlap)
        else:
            raw = self._images("encode", rearrange(pixels, "b h w c -> b c h w") * 2.0 - 1.0, run, tile)
        return from_autoencoder(self.spec, raw.to(run.output, run.output_dtype))

    def _images(self, half: str, given: torch.Tensor, run: Run, tile: int | None) -> torch.Tensor:
        """``encode`` or ``decode`` images [B, C, h, w] one by one; after one that did not fit, in its tiles."""
        made = []
        for number, one in enumerate(given.split(1)):
            report = _report_of(run, number, len(given))
            for attempt in self._attempts(
                f"the image is {half}d", run, tile, IMAGE_TILE, self._image_bytes(half, one, run)
            ):
                with attempt:
                    tile = attempt.tile
                    whole = self._image(half, one, run, tile, report).to(run.output, run.output_dtype)
            made.append(whole)
        return made[0] if len(made) == 1 else torch.cat(made)

    def _image(self, half: str, given: torch.Tensor, run: Run, tile: int | None, report: Callable) -> torch.Tensor:
        if tile is None:
            with self._blocks(half):
                return getattr(self.module, half)(given.to(run.device, run.dtype), return_dict=False)[0]
        return getattr(Tiling(tile, run.device, run.dtype, report, run.output), half)(self.module, given)

    def _blocks(self, half: str) -> AbstractContextManager:
        return self.blocks.active() if self.blocks is not None and half == "decode" else nullcontext()

    def _compiled(self, pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Pieces of a video; the decoder is compiled while one is computed, and not while it is used."""
        return streaming.each_within(lambda: self._blocks("decode"), pieces)

    def _image_bytes(self, half: str, given: torch.Tensor, run: Run) -> Callable[[int | None], int]:
        """What a pass takes, by the size of its tiles."""
        cell = self.spec.spatial_ratio if half == "decode" else 1
        height, width = (length * cell for length in given.shape[-2:])

        def needed(tile: int | None) -> int:
            if tile is None:
                return getattr(self.memory, half)(given.shape, run.dtype.itemsize)
            return getattr(self.memory, f"{half}_in_tiles")(height, width, tile, run.dtype.itemsize)

        return needed

    def _attempts(self, what: str, run: Run, tile: int | None, usual: int, needed: Callable) -> Iterator[Attempt]:
        """Sizes of tiles to try until one has fitted: those of which the device could hold ``needed(tile)`` bytes.

        Each is half of the one before; the first is ``tile``, or the whole where none is asked for. The smallest is
        tried in any case.
        """
        tiles = [*([None] if tile is None else []), *_halves(tile or usual)]
        for number, side in enumerate(tiles):
            last = number == len(tiles) - 1
            if not (last or run.fits(needed(side) + self.weights)):
                continue
            run.make_room(needed(side))
            attempt = Attempt(side, what, tiles[number + 1 :], run)
            yield attempt
            if attempt.fitted:
                return
            run.free_memory()  # here: an exception that is being handled holds what its pass made

    def _video_tiles(self, tile: int | None, overlap: int | None) -> Tiles | None:
        """Tiles of ``tile`` pixels, in latent cells."""
        if tile is None:
            return None
        size = max(2, tile // self.spec.spatial_ratio)
        overlap = size // 4 if overlap is None else overlap // self.spec.spatial_ratio
        return Tiles(size, min(overlap, size - 1))

    def _frames(self, raw: torch.Tensor, run: Run, tile: int | None, overlap: int | None) -> Iterator[torch.Tensor]:
        """Frames of one video; repeated in smaller tiles where those before did not fit into memory."""

        done, needed = 0, self._frames_bytes(raw, run)
        for attempt in self._attempts("frames are decoded", run, tile, VIDEO_TILE, needed):
            with attempt:
                for number, piece in enumerate(
                    self._decoded_pieces(raw, run, self._video_tiles(attempt.tile, overlap))
                ):
                    if number >= done:
                        done += 1
                        yield piece

    def _frames_bytes(self, raw: torch.Tensor, run: Run) -> Callable[[int | None], int]:
        """What decoding takes, by the size of its tiles."""

        def needed(side: int | None) -> int:
            cells = [
                length if side is None else min(length, side // self.spec.spatial_ratio) for length in raw.shape[3:]
            ]
            return self.memory.decode((*raw.shape[:3], *cells), run.dtype.itemsize)

        return needed

    def _decoded_pieces(self, raw: torch.Tensor, run: Run, tiles: Tiles | None) -> Iterator[torch.Tensor]:
        shown, total = 0, raw.shape[2]
        pieces = streaming.decode_pieces(self.module, self.spec, raw, run.device, run.dtype, tiles, run.has_room)
        for piece in self._compiled(pieces):
            pixels = self._shown(piece, run)
            shown = min(shown + streaming.PIECE, total)
            run.report(shown, total)
            yield pixels

    def _latents(self, videos: torch.Tensor, run: Run, tile: int | None, overlap: int | None) -> torch.Tensor:
        def needed(side: int | None) -> int:
            sides = [min(length, side or length) for length in videos.shape[2:4]]
            return self.memory.encode((*videos.shape[:2], *sides), run.dtype.itemsize)

        given = self.module, self.spec, videos, run.device, run.dtype
        for attempt in self._attempts("frames are encoded", run, tile, VIDEO_TILE, needed):
            with attempt:
                tiles = self._video_tiles(attempt.tile, overlap)
                latents = streaming.encode_pieces(*given, tiles, run.report, run.has_room)
        return latents


class Attempt:
    """One pass, in tiles of ``tile`` pixels or whole: a block that may run out of memory unless it is the last."""

    def __init__(self, tile: int | None, what: str, smaller: list, run: Run):
        self.tile, self.what, self.smaller, self.run, self.fitted = tile, what, smaller, run, False

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, traceback) -> bool:
        self.fitted = error is None
        if self.fitted or not self.smaller or not self.run.ran_out_of_memory(error):
            return False
        logger.warning("Out of memory: %s in tiles of %d pixels or less.", self.what, self.smaller[0])
        return True


def _halves(side: int) -> list[int]:
    """``side`` and its halves, down to the smallest tile."""
    halves = [side]
    while halves[-1] // 2 >= LEAST_TILE:
        halves.append(halves[-1] // 2)
    return halves


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
