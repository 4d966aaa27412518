"""The demo weights understand what they are asked, in 1, 2 and 4 steps, and come up in time."""

from __future__ import annotations

import random

import demo_command
import drawing
import looking
import pytest
import tiny
import torch
from language import COLOURS, Scene, all_scenes, render
from looking import scenes, seen
from PIL import Image


def test_the_eye_sees():
    for scene in scenes():
        assert seen(render(scene).permute(1, 2, 0)) == scene


@pytest.fixture
def parts(host):
    return drawing.call("SanaLoadPipeline", pipeline="sana-sprint-demo")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_images_show_what_the_prompts_say(parts, steps):
    """Every scene in one of the numbers of steps; in each of them: tests/slow/test_demo.py."""
    third = {1: 0, 2: 1, 4: 2}[steps]
    looking.check(parts, steps, dict(list(enumerate(scenes()))[third::3]))


@pytest.mark.parametrize("instruction", ["none", "image"])
def test_a_looser_sentence_is_understood(parts, instruction):
    prompt = "Purple Triangle at the bottom of a white background"
    picture = drawing.ours(parts, prompt, 256, 256, encoding={"instruction": instruction})[0]
    assert seen(picture) == Scene("purple", "triangle", "at the bottom", "white")


def pairs(count: int) -> list[tuple[Scene, Scene]]:
    """A scene that is given and another that is asked for, chosen once."""
    rng = random.Random(5)
    return [tuple(rng.sample(all_scenes(), 2)) for _ in range(count)]


def drawn(parts, latent: dict, prompt: str, seed: int, **settings) -> dict:
    positive = drawing.call("SanaEncodePrompt", clip=parts[1], text=prompt)[0]
    given = {"model": parts[0], "positive": positive, "latent_image": latent, "seed": seed}
    return drawing.call("SanaSCMSample", **given, **settings)[0]


def test_image_to_image_moves_from_the_picture_to_the_prompt(parts):
    """As strength grows the picture never comes closer to the one given, nor goes further from the prompt's."""
    for seed, (given, asked) in enumerate(pairs(4)):
        picture = render(given).permute(1, 2, 0)
        latent = {"samples": parts[2].encode(picture[None])}
        empty = drawing.call("SanaEmptyLatent", width=256, height=256)[0]
        goal = drawing.decode(parts[2], drawn(parts, empty, asked.prompt, seed))[0]
        left, missing = [], []
        for strength in (0.0, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0):
            between = drawing.decode(parts[2], drawn(parts, latent, asked.prompt, seed, denoise=strength))[0]
            left.append((between - picture).abs().mean().item())
            missing.append((between - goal).abs().mean().item())
        said = f"{given.prompt} to {asked.prompt}: {left}, {missing}"
        assert all(later >= earlier - 3e-3 for earlier, later in zip(left, left[1:])), said
        assert all(later <= earlier + 3e-3 for earlier, later in zip(missing, missing[1:])), said
        assert left[0] < 0.03 and missing[-1] < 0.005 and missing[0] > 10 * missing[-1], said


def test_inpainting_draws_inside_the_mask_alone(parts, host):
    """The right half is drawn; the left is the latent given, and after ImageCompositeMasked the picture given."""
    for seed, (given, asked) in enumerate(pairs(3)):
        picture = render(given).permute(1, 2, 0)
        mask = torch.zeros(1, 256, 256)
        mask[:, :, 128:] = 1.0
        encoded = {"samples": parts[2].encode(picture[None])}
        held = drawing.core("SetLatentNoiseMask", host, samples=encoded, mask=mask)[0]
        latent = drawn(parts, held, asked.prompt, seed)
        assert drawing.difference(latent["samples"][..., :4], encoded["samples"][..., :4]) < drawing.ROUNDING
        inside = drawing.decode(parts[2], latent)[0, :, 160:]
        ground = torch.tensor(COLOURS[asked.background]) / 255
        assert (inside - ground).abs().amax(-1).lt(0.1).float().mean() > 0.5, asked.prompt


def test_weights_are_small():
    size = sum(file.stat().st_size for file in tiny.DEMO.rglob("*") if file.is_file())
    assert size <= 12 * 1024**2


def test_demo_command_draws_in_time(tmp_path):
    file = demo_command.run(tmp_path, "a green square on the right of a black background", most=30)
    with Image.open(file) as picture:
        assert picture.format == "PNG" and picture.size == (256, 256)
        pixels = torch.tensor(list(picture.getdata())).view(256, 256, 3) / 255
    assert seen(pixels) == Scene("green", "square", "on the right", "black")
