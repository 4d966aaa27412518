"""Video autoencoders in pieces along time: the memory of a few frames, with the same result.

A coder receives latents (decoder) or pixels (encoder) in order and returns what is complete; after the
piece with ``last`` set it has returned everything. Wan's convolutions cache their last frames
(AutoencoderKLWan._decode and _encode in diffusers); LTX-2's are in ltx2_streaming.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from einops import rearrange

from .latent_spaces import VaeSpec
from .ltx2_streaming import Ltx2Decoder, Ltx2Encoder

PIECE = 2
"""Latent frames per piece; a decoder may split it further."""


def each_within(
    make_context: Callable[[], AbstractContextManager], pieces: Iterator[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The pieces, each computed within a context that has ended where the piece is used."""
    while True:
        with make_context():
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


class Coder(Protocol):
    """One run over one batch of videos."""

    def push(self, piece: torch.Tensor, last: bool) -> torch.Tensor:
        """The result that ``piece`` [B, C, n, h, w] completes: [B, C', m, h', w'], m is 0 or more."""

    def park(self, device: torch.device | str) -> None:
        """Move the cache between pieces to a device."""

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""


class _Caching:
    """What Wan's decoder and encoder cache of the frames before a piece."""

    memory: list

    def park(self, device) -> None:
        self.memory[:] = [m.to(device) if isinstance(m, torch.Tensor) else m for m in self.memory]

    @property
    def nbytes(self) -> int:
        return sum(m.numel() * m.itemsize for m in self.memory if isinstance(m, torch.Tensor))


class _ReadOnce(list):
    """Cached frames for the last piece: each is freed once it is read, and none is kept after it."""

    def __setitem__(self, index, value):
        super().__setitem__(index, value if isinstance(index, slice) else None)


class WanDecoder(_Caching):
    """AutoencoderKLWan's decoder, one latent frame at a time."""

    def __init__(self, module):
        module.clear_cache()
        # a separate list, so that the cache is freed with this decoder and not kept by the module
        self.module, self.memory, self.first = module, [None] * len(module._feat_map), True

    def push(self, piece: torch.Tensor, last: bool) -> torch.Tensor:
        frames = []
        latents = self.module.post_quant_conv(piece).split(1, dim=2)
        for number, latent in enumerate(latents, 1):
            if last and number == len(latents):
                self.memory = _ReadOnce(self.memory)
            frames.append(self.module.decoder(latent, feat_cache=self.memory, feat_idx=[0], first_chunk=self.first))
            self.first = False
        return torch.cat(frames, dim=2).clamp(-1.0, 1.0)


class WanEncoder(_Caching):
    """AutoencoderKLWan's encoder: the first frame, then four frames for each latent frame."""

    def __init__(self, module):
        module.clear_cache()
        self.module, self.memory, self.first, self.waiting = module, [None] * len(module._enc_feat_map), True, None

    def push(self, piece: torch.Tensor, last: bool) -> torch.Tensor:
        frames = piece if self.waiting is None else torch.cat([self.waiting, piece], dim=2)
        latents = []
        while frames.shape[2] >= (1 if self.first else 4):
            taken, frames = frames[:, :, : 1 if self.first else 4], frames[:, :, 1 if self.first else 4 :]
            latents.append(self.module.encoder(taken, feat_cache=self.memory, feat_idx=[0]))
            self.first = False
        self.waiting = frames
        if not latents:
            side = [s // 8 for s in piece.shape[-2:]]
            return piece.new_zeros(piece.shape[0], self.module.config.z_dim, 0, *side)
        return self.module.quant_conv(torch.cat(latents, dim=2))[:, : self.module.config.z_dim]


@dataclass(frozen=True)
class Tiles:
    """Square tiles for a pass over large frames: ``size`` and ``overlap`` in latent cells."""

    size: int
    overlap: int

    def starts(self, length: int) -> list[int]:
        """Where the tiles begin along a side of ``length`` cells; the last one ends at its end."""
        if length <= self.size:
            return [0]
        stride = max(1, self.size - self.overlap)
        return [*range(0, length - self.size, stride), length - self.size]


HasRoom = Callable[[int], bool]


class Tiled:
    """A coder for tiles that overlap and are blended: the memory of a tile, not of a frame.

    The caches of the tiles stay on the device where ``has_room(bytes)`` says that they fit, else each is on the CPU
    while other tiles are computed.
    """

    def __init__(
        self, make: Callable[[], Coder], tiles: Tiles, scale: float, ratio: int, device, has_room: HasRoom | None
    ):
        self.make, self.tiles, self.device = make, tiles, device
        self.scale, self.ratio = scale, ratio
        """``scale``: output cells per input cell; ``ratio``: input cells per latent cell."""
        self.coders: dict[tuple[int, int], Coder] = {}
        self.has_room = has_room or (lambda needed: False)
        self.parked_on: torch.device | str | None = None

    def push(self, piece: torch.Tensor, last: bool) -> torch.Tensor:
        rows, columns = piece.shape[-2] // self.ratio, piece.shape[-1] // self.ratio
        total: Any = None
        for top in self.tiles.starts(rows):
            for left in self.tiles.starts(columns):
                tile = self._tile(piece, top, left)
                if (top, left) not in self.coders:
                    self.coders[top, left] = self.make()
                coder = self.coders[top, left]
                coder.park(self.device)
                part = coder.push(tile.to(self.device), last)
                coder.park(self._between(coder, rows, columns))
                if total is None:
                    side = [int(s * self.scale) for s in piece.shape[-2:]]
                    total = torch.zeros(*part.shape[:3], *side, dtype=part.dtype)
                    weights = torch.zeros(1, 1, 1, *side)
                self._add(part.to("cpu"), total, weights, top, left, (rows, columns))
        return total.div_(weights.to(total.dtype))

    def _between(self, coder: Coder, rows: int, columns: int) -> torch.device | str:
        """Where the caches are kept between tiles: it is found with the first one."""
        if self.parked_on is None:
            count = len(self.tiles.starts(rows)) * len(self.tiles.starts(columns))
            self.parked_on = self.device if self.has_room(coder.nbytes * count) else "cpu"
        return self.parked_on

    def park(self, device) -> None:
        """Nothing to do: it is said above where the cache of every tile is."""

    @property
    def nbytes(self) -> int:
        return sum(coder.nbytes for coder in self.coders.values())

    def _tile(self, piece, top, left):
        size, ratio = self.tiles.size, self.ratio
        return piece[..., top * ratio : (top + size) * ratio, left * ratio : (left + size) * ratio]

    def _add(self, part, total, weights, top, left, latent_side) -> None:
        cell = int(self.ratio * self.scale) if self.scale >= 1 else 1
        fade = self.tiles.overlap * cell
        down = _ramp(part.shape[-2], fade, top > 0, top + self.tiles.size < latent_side[0])
        across = _ramp(part.shape[-1], fade, left > 0, left + self.tiles.size < latent_side[1])
        weight = down[:, None] * across[None, :]
        rows = slice(top * cell, top * cell + part.shape[-2])
        columns = slice(left * cell, left * cell + part.shape[-1])
        total[..., rows, columns] += part * weight.to(part.dtype)
        weights[..., rows, columns] += weight


def _ramp(length: int, fade: int, before: bool, after: bool) -> torch.Tensor:
    """1 in the middle, decreasing towards 0 over ``fade`` cells on sides with another tile."""
    ramp = torch.ones(length)
    fade = min(fade, length)
    slope = (torch.arange(fade) + 1) / (fade + 1)
    if before and fade:
        ramp[:fade] *= slope
    if after and fade:
        ramp[length - fade :] *= slope.flip(0)
    return ramp


DECODERS: dict[str, Callable[..., Coder]] = {"wan": WanDecoder, "ltx2": Ltx2Decoder}
ENCODERS: dict[str, Callable[..., Coder]] = {"wan": WanEncoder, "ltx2": Ltx2Encoder}
"""By the key of the latent space; an encoder returns the mode of the distribution."""


def decoder(module, spec: VaeSpec, device, tiles: Tiles | None = None, has_room: HasRoom | None = None) -> Coder:
    """A decoder for one video of an autoencoder, in ``tiles`` where they are given.

    ``has_room(bytes)``: whether so much is free on the device beside a tile.
    """
    make = partial(DECODERS[spec.space.key], module)
    return make() if tiles is None else Tiled(make, tiles, spec.spatial_ratio, 1, device, has_room)


@torch.no_grad()
def push_pieces(coder: Coder, latents: torch.Tensor, device, dtype, ends: bool) -> Iterator:
    """The frames [B, 3, n, H, W] that latents [B, C, f, h, w] complete; ``ends``: they are the last ones."""
    for start in range(0, latents.shape[2], PIECE):
        piece = latents[:, :, start : start + PIECE].to(device, dtype)
        frames = coder.push(piece, ends and start + PIECE >= latents.shape[2])
        if frames.shape[2]:
            yield frames


def decode_pieces(
    module,
    spec: VaeSpec,
    latents: torch.Tensor,
    device,
    dtype,
    tiles: Tiles | None = None,
    has_room: HasRoom | None = None,
) -> Iterator:
    """Frames [B, 3, n, H, W] in [-1, 1], in order, from the autoencoder's latents [B, C, f, h, w]; see decoder."""
    yield from push_pieces(decoder(module, spec, device, tiles, has_room), latents, device, dtype, True)


def gather(
    spec: VaeSpec, latents: torch.Tensor, pieces: Callable[[torch.Tensor], Iterable], device, dtype: torch.dtype
) -> torch.Tensor:
    """Videos [B, F, H, W, 3] out of ``pieces(one)``, which gives the frames [n, H, W, 3] of one latent in order."""
    frames = spec.frames(latents.shape[2])
    sides = (side * spec.spatial_ratio for side in latents.shape[-2:])
    videos = torch.empty(latents.shape[0], frames, *sides, 3, device=device, dtype=dtype)
    for video, one in zip(videos, latents.split(1)):
        start = 0
        for piece in pieces(one):
            video[start : start + len(piece)] = piece
            start += len(piece)
    return videos


@torch.no_grad()
def encode_pieces(
    module,
    spec: VaeSpec,
    pixels: torch.Tensor,
    device,
    dtype,
    tiles: Tiles | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    has_room: HasRoom | None = None,
) -> torch.Tensor:
    """The autoencoder's latents [B, C, f, h, w] of frames [B, F, H, W, 3] in [0, 1], a few frames at a time.

    Frames after the last complete latent frame are dropped, as in ComfyUI and diffusers. ``report(done, total)``
    is called with numbers of frames.
    """
    frames = (pixels.shape[1] - 1) // spec.temporal_ratio * spec.temporal_ratio + 1
    make, ratio = partial(ENCODERS[spec.space.key], module), spec.spatial_ratio
    coder = make() if tiles is None else Tiled(make, tiles, 1 / ratio, ratio, device, has_room)
    latents, step = [], spec.temporal_ratio * PIECE
    for start in range(0, frames, step):
        stop = min(start + step, frames)
        piece = rearrange(pixels[:, start:stop], "b f h w c -> b c f h w").to(device, dtype) * 2.0 - 1.0
        latents.append(coder.push(piece, stop == frames))
        report(stop, frames)
    return torch.cat(latents, dim=2)
