"""What the image demo's images show, seen by the language that it was trained on."""

from __future__ import annotations

import functools
import random
import sys

import drawing
import tiny
import torch

sys.path.insert(0, str(tiny.REPOSITORY / "demo"))

from language import COLOURS, PLACES, SHAPES, Scene, all_scenes, coverage, render


def scenes() -> list[Scene]:
    """A scene for every shape, place and colour, chosen once."""
    rng = random.Random(0)
    chosen = [rng.choice([s for s in all_scenes() if s.shape == shape]) for shape in SHAPES]
    chosen += [rng.choice([s for s in all_scenes() if s.place == place]) for place in PLACES]
    chosen += [rng.choice([s for s in all_scenes() if s.colour == colour]) for colour in COLOURS]
    return chosen


@functools.cache
def masks() -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Every shape at every place, and what each covers: [54, 256 * 256]."""
    kinds = [(shape, place) for shape in SHAPES for place in PLACES]
    return kinds, torch.stack([coverage(shape, PLACES[place]).flatten() for shape, place in kinds])


def seen(image: torch.Tensor) -> Scene:
    """What an image [256, 256, 3] shows: the scene of the language whose own is nearest in squares."""
    kinds, covered = masks()
    inks = torch.tensor(list(COLOURS.values())) / 255
    distance = (image.reshape(1, -1, 3) - inks[:, None]).square().sum(-1)
    inside, outside = distance @ covered.T, distance @ (1 - covered).T
    best = int((inside.min(0).values + outside.min(0).values).argmin())
    names = list(COLOURS)
    colour, ground = names[int(inside[:, best].argmin())], names[int(outside[:, best].argmin())]
    return Scene(colour, *kinds[best], ground)


def check(parts, steps: int, chosen: dict[int, Scene]) -> None:
    """Images of the scenes' prompts, by seed, show them."""
    wrong = []
    for seed, scene in chosen.items():
        image = drawing.ours(parts, scene.prompt, 256, 256, steps=steps, seed=seed)[0]
        if seen(image) != scene:
            wrong.append((scene.prompt, seen(image).prompt))
        assert (image.permute(2, 0, 1) - render(scene)).abs().mean() < 0.03, scene.prompt
    assert not wrong
