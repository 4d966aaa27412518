"""The prompt language of the video demo: each prompt and its video.

A prompt such as ``a red ring moving right on a blue background`` has exactly one video: the shape
moves from one side of the image to the other at constant speed, through the centre. From a first
frame it moves in the same direction from its position there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from language import COLOURS, SHAPES, Scene, render

SIZE = 128
FRAMES = 17
TRAVEL = 0.5
"""The distance that a shape moves, as a fraction of the image's width."""

DIRECTIONS: dict[str, tuple[float, float]] = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Move:
    """One video of the language: ``shape`` in ``colour`` moving in ``direction`` over ``background``."""

    colour: str
    shape: str
    direction: str
    background: str

    @property
    def prompt(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        ground = "an" if self.background[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} moving {self.direction} on {ground} {self.background} background"


def all_moves() -> list[Move]:
    """Every video of the language, in a fixed order; a shape never has its background's colour."""
    product = itertools.product(COLOURS, SHAPES, DIRECTIONS, COLOURS)
    return [Move(c, s, d, b) for c, s, d, b in product if c != b]


def path(move: Move, aside: float = 0.0, frames: int = FRAMES) -> list[tuple[float, float]]:
    """The shape's centre in each frame; ``aside``: the offset of its line from the centre."""
    dx, dy = DIRECTIONS[move.direction]
    along = [TRAVEL * (i / (frames - 1) - 0.5) for i in range(frames)]
    return [(0.5 + a * dx + aside * abs(dy), 0.5 + a * dy + aside * abs(dx)) for a in along]


def film(move: Move, aside: float = 0.0, frames: int = FRAMES, size: int = SIZE) -> torch.Tensor:
    """The video of a prompt: [frames, 3, size, size] in [0, 1]."""
    scene = Scene(move.colour, move.shape, "in the centre", move.background)
    return torch.stack([render(scene, size, centre=centre) for centre in path(move, aside, frames)])
