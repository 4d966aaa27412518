"""The prompt language of the demo: each prompt and its image.

A prompt such as ``a red ring on the left of a blue background`` has exactly one image, so the demo
weights are trained without a data set and tests can check that images match their prompts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

SIZE = 256
RADIUS = 0.17

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (50, 80, 220),
    "yellow": (245, 215, 60),
    "orange": (245, 135, 35),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}

PLACES: dict[str, tuple[float, float]] = {
    "in the top left": (0.25, 0.25),
    "at the top": (0.5, 0.25),
    "in the top right": (0.75, 0.25),
    "on the left": (0.25, 0.5),
    "in the centre": (0.5, 0.5),
    "on the right": (0.75, 0.5),
    "in the bottom left": (0.25, 0.75),
    "at the bottom": (0.5, 0.75),
    "in the bottom right": (0.75, 0.75),
}

SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond")


@dataclass(frozen=True)
class Scene:
    """One image of the language: ``shape`` in ``colour`` at ``place`` on ``background``."""

    colour: str
    shape: str
    place: str
    background: str

    @property
    def prompt(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        ground = "an" if self.background[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} {self.place} of {ground} {self.background} background"


def all_scenes() -> list[Scene]:
    """Every scene of the language, in a fixed order; a shape never has its background's colour."""
    product = itertools.product(COLOURS, SHAPES, PLACES, COLOURS)
    return [Scene(c, s, p, b) for c, s, p, b in product if c != b]


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Distance to the edge of ``shape`` with radius ``r`` centred on the origin, negative inside.

    ``x`` increases to the right and ``y`` downwards, as in an image. Outside of corners the distance is
    approximate, which is not visible with an edge of one pixel.
    """
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "ring":
        return (torch.hypot(x, y) - 0.76 * r).abs() - 0.24 * r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * r
    if shape == "diamond":
        return (x.abs() + y.abs()) / 2**0.5 - 0.78 * r
    if shape == "triangle":
        return torch.maximum(x.abs() * 0.866 - y * 0.5, y) - 0.6 * r
    if shape == "cross":
        upright = torch.maximum(x.abs() - 0.3 * r, y.abs() - r)
        flat = torch.maximum(y.abs() - 0.3 * r, x.abs() - r)
        return torch.minimum(upright, flat)
    raise ValueError(f"unknown shape {shape!r}; choose one of {', '.join(SHAPES)}")


def coverage(shape: str, centre: tuple[float, float], radius: float = RADIUS, size: int = SIZE) -> torch.Tensor:
    """The coverage of each pixel by the shape: [size, size] in [0, 1], antialiased over one pixel."""
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis - centre[1], axis - centre[0], indexing="ij")
    distance = signed_distance(shape, x, y, torch.tensor(radius))
    return (0.5 - distance * size).clamp(0, 1)


def render(scene: Scene, size: int = SIZE, radius: float = RADIUS, centre=None) -> torch.Tensor:
    """The image of a scene: [3, size, size] in [0, 1]."""
    alpha = coverage(scene.shape, centre or PLACES[scene.place], radius, size)
    foreground = torch.tensor(COLOURS[scene.colour]).div(255).view(3, 1, 1)
    background = torch.tensor(COLOURS[scene.background]).div(255).view(3, 1, 1)
    return alpha * foreground + (1 - alpha) * background
