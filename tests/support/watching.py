"""What the video demo's films show, seen by the language that it was trained on."""

from __future__ import annotations

import random
import sys
from itertools import cycle, islice

import drawing
import filming
import tiny
import torch

sys.path.insert(0, str(tiny.REPOSITORY / "demo"))

import long_language
from language import COLOURS, SHAPES, coverage
from sana_nodes.samplers.block_causal import block_bounds, prompt_blocks
from video_language import DIRECTIONS, FRAMES, SIZE, Move, all_moves, film

NEAR = 0.06
"""How far from its place a shape may be, in widths of the picture."""

SAMPLING = {"steps": 12, "cfg": 2.0}
"""As in the example workflows."""


def moves() -> list[Move]:
    """A video for every shape and for every direction, chosen once."""
    rng = random.Random(1)
    chosen = [rng.choice([m for m in all_moves() if m.shape == shape]) for shape in SHAPES]
    return chosen + [rng.choice([m for m in all_moves() if m.direction == direction]) for direction in DIRECTIONS]


def seen(frame: torch.Tensor) -> tuple[str, str, str, tuple[float, float]]:
    """Colour, shape, background and centre of what a frame [H, W, 3] shows: the nearest of the language."""
    names, inks = list(COLOURS), torch.tensor(list(COLOURS.values())) / 255
    nearest = (frame.unsqueeze(-2) - inks).square().sum(-1).argmin(-1)
    background = int(nearest.flatten().mode().values)
    inside = (frame - inks[background]).abs().sum(-1) > 0.5 * (frame - inks[background]).abs().sum(-1).max()
    rows, columns = inside.nonzero().float().unbind(1)
    colour = int((frame[inside].median(0).values - inks).square().sum(-1).argmin())
    middle = ((columns.min() + columns.max() + 1).item() / 2 / SIZE, (rows.min() + rows.max() + 1).item() / 2 / SIZE)

    def overlap(shape: str) -> float:
        best = 0.0
        for dy in (-0.04, -0.02, 0.0, 0.02, 0.04):
            drawn = coverage(shape, (middle[0], middle[1] + dy), size=SIZE) > 0.5
            best = max(best, ((drawn & inside).sum() / (drawn | inside).sum()).item())
        return best

    shape = max(SHAPES, key=overlap)
    return names[colour], shape, names[background], middle


def wrong(move: Move, frames: torch.Tensor, aside: float = 0.0) -> tuple[list[str], int]:
    """What the first and the last frame show that they should not, and in how many the shape is another."""
    found, others = [], 0
    for place in (0, FRAMES - 1):
        colour, shape, background, centre = seen(frames[place])
        truth = seen(film(move, aside)[place].movedim(0, -1))
        off = max(abs(a - b) for a, b in zip(centre, truth[3]))
        others += shape != truth[1]
        if (colour, background) != (truth[0], truth[2]) or off > NEAR:
            found.append(f"{move.prompt}, frame {place}: {colour} {shape} on {background}, {off:.3f} off")
    return found, others


def check(results: list[tuple[list[str], int]]) -> None:
    """Colours and places are right in every frame; one shape in ten may be taken for another (circle and diamond)."""
    assert not [said for found, _ in results for said in found]
    assert sum(others for _, others in results) <= len(results) * 2 / 10


SIZES = {"width": SIZE, "height": SIZE, "frames": FRAMES}


def load(home, folder=tiny.VIDEO_DEMO):
    """A demo's parts, out of a models folder that it is linked into."""
    link = home / "models" / "diffusers" / folder.name
    if not link.exists():
        link.symlink_to(folder, target_is_directory=True)
    return drawing.call("SanaLoadPipeline", pipeline=folder.name)


def load_long(home):
    return load(home, tiny.LONG_DEMO)


def check_text(parts, chosen: dict[int, Move]) -> None:
    """Videos of prompts alone, by seed."""
    results = []
    for seed, move in chosen.items():
        frames = filming.ours(parts, prompt=move.prompt, negative="", seed=seed, **SIZES, **SAMPLING)
        results.append(wrong(move, frames))
    check(results)


def check_first_frames(parts, chosen: dict[int, Move]) -> None:
    """Videos that begin with an image whose shape stands aside of where the prompt alone has it, by seed."""
    results = []
    for seed, move in chosen.items():
        aside = 0.15 * (-1) ** seed
        image = film(move, aside)[:1].movedim(1, -1)
        frames = filming.ours(parts, image, prompt=move.prompt, negative="", seed=seed, **SIZES, **SAMPLING)
        results.append(wrong(move, frames, aside))
    check(results)


LONG_FRAMES = 161
LONG_NEAR = 0.15
"""The same of a long video, whose shapes stop where the frames before brought them: nearer there than to the middle."""


def stories(count: int = 3) -> list[list[Move]]:
    """Stories of three prompts, chosen once, in which each changes the shape's direction, its colour or both."""
    rng, chosen = random.Random(2), []
    for what in islice(cycle([("direction",), ("colour",), ("direction", "colour")]), count):
        moves = [rng.choice(all_moves())]
        while len(moves) < 3:
            moves.append(long_language.changed(moves[-1], rng, what))
        chosen.append(moves)
    return chosen


def moves_of_frames(story: list[Move]) -> list[Move]:
    """The move of each frame of a story whose prompts last equally long, at whole blocks."""
    bounds = block_bounds((LONG_FRAMES + 3) // 4, long_language.BLOCK)
    begin = [0.0 if not i else (i * (LONG_FRAMES - 1) / len(story) - 1) / 4 + 1 for i in range(len(story))]
    first = [4 * bounds[block] - 3 for block in prompt_blocks(begin, bounds)]
    return [story[sum(frame >= number for number in first[1:])] for frame in range(LONG_FRAMES)]


def wrong_story(story: list[Move], frames: torch.Tensor) -> tuple[list[str], int]:
    """What the last frame of each prompt shows that it should not, and in how many the shape is another."""
    moves, found, others = moves_of_frames(story), [], 0
    centres = long_language.path(moves)
    for frame in [number for number in range(LONG_FRAMES) if moves[number] != (*moves[1:], None)[number]]:
        colour, shape, background, centre = seen(frames[frame])
        move, off = moves[frame], max(abs(a - b) for a, b in zip(centre, centres[frame]))
        others += shape != move.shape
        if (colour, background) != (move.colour, move.background) or off > LONG_NEAR:
            found.append(f"{move.prompt}, frame {frame}: {colour} {shape} on {background}, {off:.3f} off")
    return found, others


def check_stories(results: list[tuple[list[str], int]]) -> None:
    """Of the last frames of three prompts each: four in five show what the prompt says, and two in three its shape."""
    said = [text for found, _ in results for text in found]
    assert len(said) <= len(results) * 3 / 5, said
    assert sum(others for _, others in results) <= len(results)


def told(parts, story: list[Move], seed: int) -> tuple[list[str], int]:
    """What a film of a story shows that it should not."""
    positive, said = {}, {"negative_prompt": "", "motion_score": 10, "instruction": "video"}
    for i, move in enumerate(story):
        states = drawing.call("SanaEncodeVideoPrompt", clip=parts[1], prompt=move.prompt, **said)[0]
        place = {"start": 20 * i / len(story), "fps": float(long_language.FPS)}
        positive = {"previous": drawing.call("SanaPromptSchedule", conditioning=states, **place, **positive)[0]}
    empty = drawing.call("SanaEmptyVideoLatent", vae=parts[2], **{**SIZES, "frames": LONG_FRAMES})[0]
    led = {"model": parts[0], "positive": positive["previous"], "latent_image": empty, "seed": seed}
    latent, _ = drawing.call("SanaLongVideoSample", **led, block_frames=long_language.BLOCK)
    return wrong_story(story, drawing.decode(parts[2], latent).flatten(0, -4))
