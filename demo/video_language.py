"""The video demo's prompt language: what a sentence says and the video it stands for.

A sentence such as ``a red ring moving right on a blue background`` has exactly one video: the shape
goes from one side of the picture to the other at constant speed, through the middle. From a first
frame it goes the same way from wherever it is seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from language import COLOURS, SHAPES, Scene, render

SIZE = 128
FRAMES = 17
TRAVEL = 0.5
"""How far a shape goes, in widths of the picture."""

DIRECTIONS: dict[str, tuple[float, float]] = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Move:
    """One video of the language: ``shape`` in ``colour`` going in ``direction`` over ``background``."""

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
    """The shape's centre in each frame; ``aside``: how far from the middle its line runs."""
    dx, dy = DIRECTIONS[move.direction]
    along = [TRAVEL * (i / (frames - 1) - 0.5) for i in range(frames)]
    return [(0.5 + a * dx + aside * abs(dy), 0.5 + a * dy + aside * abs(dx)) for a in along]


def film(move: Move, aside: float = 0.0, frames: int = FRAMES, size: int = SIZE) -> torch.Tensor:
    """The video of a sentence: [frames, 3, size, size] in [0, 1]."""
    scene = Scene(move.colour, move.shape, "in the centre", move.background)
    return torch.stack([render(scene, size, centre=centre) for centre in path(move, aside, frames)])
