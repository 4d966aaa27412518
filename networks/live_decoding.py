"""A video that is decoded while its latents are still being made: block by block, in the memory of a few frames."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .latent_spaces import VaeSpec
from .streaming import Coder, Tiles, decoder, push_pieces

logger = logging.getLogger(__name__)

HISTORY = 40
"""Latent frames before a frame on which it depends in Wan's decoder, rounded up."""


def with_newest(known: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor:
    """The last HISTORY frames of latents [B, C, f, h, w] that were ``known`` and those that follow; a copy."""
    return (latents if known is None else torch.cat([known, latents], dim=2))[:, :, -HISTORY:].clone()


class LiveDecoding:
    """One decoder for one video. ``run``: networks.autoencoder.Run.

    ``sizes``: of tiles to try one after another, in pixels; None is the whole frame. ``make_tiles(size)``: such tiles.
    ``needed(latents)``: gives the bytes of decoding like them in tiles of a size; ``weights``: those of the decoder.
    Where memory runs out it continues in the next size that the device could hold, and decodes the last latents again:
    no seam is seen.
    """

    def __init__(
        self,
        module,
        spec: VaeSpec,
        run: Any,
        sizes: Sequence[int | None],
        make_tiles: Callable[[int | None], Tiles | None],
        needed: Callable,
        weights: int,
    ):
        self.module, self.spec, self.run, self.weights = module, spec, run, weights
        self.sizes, self.make_tiles, self.needed = list(sizes), make_tiles, needed
        self.coder: Coder | None = None
        self.recent: torch.Tensor | None = None

    @torch.no_grad()
    def frames(self, latents: torch.Tensor, ends: bool) -> Iterator[torch.Tensor]:
        """The frames [1, 3, n, H, W] that the next latents [1, C, f, h, w] complete; ``ends``: they are the last."""
        done = 0
        while True:
            try:
                if self.coder is None:
                    self._begin(latents)
                for number, piece in enumerate(self._pushed(latents, ends)):
                    if number >= done:
                        done += 1
                        yield piece
                self.recent = with_newest(self.recent, latents.to("cpu"))
                return
            except Exception as error:
                if len(self.sizes) == 1 or not self.run.ran_out_of_memory(error):
                    raise
                logger.warning("Out of memory: frames are decoded in tiles of %d pixels or less.", self.sizes[1])
            self.coder = None
            del self.sizes[0]
            self.run.free_memory()  # here: an exception that is being handled holds what its pass made

    def _begin(self, latents: torch.Tensor) -> None:
        """A decoder in the next size that could fit, which has seen the latents before."""
        while len(self.sizes) > 1 and not self.run.fits(self.needed(latents)(self.sizes[0]) + self.weights):
            del self.sizes[0]
        tiles = self.make_tiles(self.sizes[0])
        self.coder = decoder(self.module, self.spec, self.run.device, tiles, self.run.has_room)
        if self.recent is not None:
            for _ in self._pushed(self.recent, False):
                pass

    def _pushed(self, latents: torch.Tensor, ends: bool) -> Iterator[torch.Tensor]:
        self.run.make_room(self.needed(latents)(self.sizes[0]))
        yield from push_pieces(self.coder, latents, self.run.device, self.run.dtype, ends)
