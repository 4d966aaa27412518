"""Sketches: a text of strokes to an image and a mask.

The text is JSON: ``{"v": 1, "paper": "#000000", "strokes": [{"c": "#ffffff", "w": 120, "p": [x, y, …], "e": 1}]}``.
Points are in 1/10000 of the width and the height, the line's width ``w`` in 1/10000 of the shorter side; ``e`` marks
the eraser, whose colour is the paper's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:  # Pillow is imported where a sketch is rendered
    from PIL import ImageDraw

UNIT = 10_000
FINER = 2
"""Strokes are rendered so many times larger, and reduced, for smooth edges."""

MOST_POINTS, LONGEST = 200_000, 8 * 2**20
"""Points of a sketch, and characters of its text."""

COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
EMPTY = "#000000"


@dataclass(frozen=True)
class Stroke:
    """``width`` and ``points`` (x, y) in 1/10000; ``colour`` is None for the eraser."""

    colour: str | None
    width: float
    points: tuple[tuple[float, float], ...]


def parse(text: str) -> tuple[str, list[Stroke]]:
    """The paper's colour and the strokes of a text, "" for an empty sketch; ValueError for another text."""
    if not text.strip():
        return EMPTY, []
    if len(text) > LONGEST:
        raise ValueError(f"sketch has {len(text):,} characters; at most {LONGEST:,} are supported: clear it")
    try:
        found = json.loads(text)
        strokes = [_stroke(each) for each in found["strokes"]]
        paper = _colour(found.get("paper", EMPTY))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"sketch is {text[:40]!r}, which no canvas of Sana Sketch made: clear it") from None
    if sum(len(stroke.points) for stroke in strokes) > MOST_POINTS:
        raise ValueError(f"sketch has more than {MOST_POINTS:,} points: clear it")
    return paper, strokes


def _stroke(given: dict) -> Stroke:
    numbers = [min(max(float(n), -UNIT), 2 * UNIT) for n in given["p"]]
    width = min(max(float(given["w"]), 0.0), float(UNIT))
    if len(numbers) < 2 or len(numbers) % 2 or any(n != n for n in (*numbers, width)):
        raise ValueError("points are pairs of numbers")
    colour = None if given.get("e") else _colour(given["c"])
    return Stroke(colour, width, tuple(zip(numbers[::2], numbers[1::2])))


def _colour(value: str) -> str:
    if not COLOUR.fullmatch(value):
        raise ValueError("a colour is # and six digits")
    return value


def render(text: str, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The image [1, height, width, 3] in [0, 1] of a sketch, and the mask [1, height, width], 1 where strokes are."""
    from PIL import Image, ImageDraw

    paper, strokes = parse(text)
    size = (width * FINER, height * FINER)
    colours, mask = Image.new("RGB", size, paper), Image.new("L", size)
    on_colours, on_mask = ImageDraw.Draw(colours), ImageDraw.Draw(mask)
    for stroke in strokes:
        _line(on_colours, stroke, size, stroke.colour or paper)
        _line(on_mask, stroke, size, 255 if stroke.colour else 0)
    image, drawn = (np.asarray(each.reduce(FINER), np.float32) / 255 for each in (colours, mask))
    return torch.from_numpy(image)[None], torch.from_numpy(drawn)[None]


def _line(onto: ImageDraw.ImageDraw, stroke: Stroke, size: tuple[int, int], fill) -> None:
    """One stroke with round ends and joints."""
    points = [(x / UNIT * size[0], y / UNIT * size[1]) for x, y in stroke.points]
    radius = max(stroke.width / UNIT * min(size) / 2, 0.5)
    if len(points) > 1:
        onto.line(points, fill, round(2 * radius))
    for x, y in points:
        onto.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
