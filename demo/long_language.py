"""The prompt language of the long video demo: prompts one after another, and the film that they tell.

Each prompt is one of the video demo's (video_language.py). The shape starts on the side that the first prompt moves it
away from, moves as its prompt says until it is on the other side, and waits there. Where the prompt changes, it moves
on from where it is. So a prompt tells a shape's colour, and only the frames before tell its place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from language import COLOURS, SHAPES, Scene, render
from video_language import DIRECTIONS, SIZE, TRAVEL, Move

FPS = 8
BLOCK = 5
"""Latent frames of a block: those of a video of the video demo."""

STEP = TRAVEL / 32
"""How far a shape moves between two frames, as a fraction of the image's width."""

NEAREST, FARTHEST = 0.5 - TRAVEL / 2, 0.5 + TRAVEL / 2


def path(moves: Sequence[Move]) -> list[tuple[float, float]]:
    """The shape's centre in each frame; ``moves``: of each frame."""
    start = DIRECTIONS[moves[0].direction]
    centres = [(0.5 - start[0] * TRAVEL / 2, 0.5 - start[1] * TRAVEL / 2)]
    for move in moves[1:]:
        steps = zip(centres[-1], DIRECTIONS[move.direction])
        x, y = (min(max(at + STEP * step, NEAREST), FARTHEST) for at, step in steps)
        centres.append((x, y))
    return centres


def film(moves: Sequence[Move], size: int = SIZE) -> torch.Tensor:
    """The film of a move for each frame: [frames, 3, size, size] in [0, 1]."""
    scenes = [Scene(move.colour, move.shape, "in the centre", move.background) for move in moves]
    return torch.stack([render(scene, size, centre=centre) for scene, centre in zip(scenes, path(moves))])


def random_story(rng: random.Random, blocks: int) -> list[Move]:
    """A move for each block: two in three times another than that of the block before."""
    colour, background = rng.sample(list(COLOURS), 2)
    moves = [Move(colour, rng.choice(SHAPES), rng.choice(list(DIRECTIONS)), background)]
    while len(moves) < blocks:
        moves.append(changed(moves[-1], rng) if rng.random() < 2 / 3 else moves[-1])
    return moves


CHANGES = (("direction",), ("direction",), ("colour",), ("direction", "colour"))
"""What changes between two prompts, as often as it is here; in a quarter of them the shape or the background too."""


def changed(move: Move, rng: random.Random, what: Sequence[str] = ()) -> Move:
    """Another move; ``what`` of it is another, or one of CHANGES."""
    if not what:
        what = rng.choice(CHANGES)
        what = (*what, rng.choice(["shape", "background"])) if rng.random() < 0.25 else what
    inks = [ink for ink in COLOURS if ink not in (move.colour, move.background)]
    colour, background = rng.sample(inks, 2)
    others = {
        "direction": rng.choice([d for d in DIRECTIONS if d != move.direction]),
        "colour": colour,
        "shape": rng.choice([s for s in SHAPES if s != move.shape]),
        "background": background,
    }
    return replace(move, **{name: others[name] for name in what})
