"""A video that is decoded while its latents are still being made: block by block, in the memory of a few frames."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .latent_spaces import VaeSpec
from .streaming import Tiles, decoder, push_pieces

logger = logging.getLogger(__name__)

HISTORY = 40
"""Latent frames before a frame on which it depends in Wan's decoder, rounded up."""


def with_newest(known: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor:
    """The last HISTORY frames of latents [B, C, f, h, w] that were ``known`` and those that follow; a copy."""
    return (latents if known is None else torch.cat([known, latents], dim=2))[:, :, -HISTORY:].clone()


class LiveDecoding:
    """One decoder for one video. ``needed``: bytes for latents of a shape; ``run``: networks.autoencoder.Run.

    Where memory runs out it continues in what ``tiles()`` gives, and decodes the last latents again: no seam is seen.
    """

    def __init__(self, module, spec: VaeSpec, run: Any, tiles: Callable, needed: Callable[..., int]):
        self.module, self.spec, self.run, self.make_tiles, self.needed = module, spec, run, tiles, needed
        self.tiles: Tiles | None = None
        self.coder = decoder(module, spec, run.device)
        self.recent: torch.Tensor | None = None

    @torch.no_grad()
    def frames(self, latents: torch.Tensor, ends: bool) -> Iterator[torch.Tensor]:
        """The frames [1, 3, n, H, W] that the next latents [1, C, f, h, w] complete; ``ends``: they are the last."""
        done = 0
        for _ in range(2):
            try:
                for number, piece in enumerate(self._pushed(latents, ends)):
                    if number >= done:
                        done += 1
                        yield piece
                self.recent = with_newest(self.recent, latents.to("cpu"))
                return
            except Exception as error:
                if self.tiles is not None or not self.run.ran_out_of_memory(error):
                    raise
                logger.warning("Out of memory while decoding: continuing in tiles.")
            self._begin_again()

    def _pushed(self, latents: torch.Tensor, ends: bool) -> Iterator[torch.Tensor]:
        sides = latents.shape[3:] if self.tiles is None else [min(side, self.tiles.size) for side in latents.shape[3:]]
        self.run.make_room(self.needed((*latents.shape[:3], *sides), self.run.dtype.itemsize))
        yield from push_pieces(self.coder, latents, self.run.device, self.run.dtype, ends)

    def _begin_again(self) -> None:
        self.run.free_memory()
        self.tiles = self.make_tiles()
        self.coder = decoder(self.module, self.spec, self.run.device, self.tiles, self.run.has_room)
        if self.recent is not None:
            for _ in self._pushed(self.recent, False):
                pass
