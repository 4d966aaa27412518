"""The demo ControlNet: a shape appears where its outline is drawn and as large, and not where the prompt says."""

from __future__ import annotations

import random

import drawing
import looking  # noqa: F401 - puts the demo's programs on the path
import pytest
import torch
from language import SIZE, render
from sana_nodes.media import sketch
from sana_nodes.tools.templates import templates
from train_additions import Sketched, random_sketched
from train_additions import sketch as outline


@pytest.fixture
def parts(host):
    return drawing.call("SanaLoadPipeline", pipeline="sana-sprint-demo")


@pytest.fixture
def net(host):
    return drawing.call("SanaLoadControlNet", control_net_name="sana-sprint-demo-sketch")[0]


def controlled(host, parts, net, prompt: str, lines: torch.Tensor, strength: float, seed: int) -> torch.Tensor:
    """An image [256, 256, 3] of a prompt and a sketch [256, 256, 3]."""
    model, clip, vae = parts
    prompt_states = drawing.call("SanaEncodePrompt", clip=clip, text=prompt)[0]
    given = {"positive": prompt_states, "negative": prompt_states, "control_net": net, "image": lines[None], "vae": vae}
    given |= {"strength": strength, "start_percent": 0.0, "end_percent": 1.0}
    positive, _ = drawing.core("ControlNetApplyAdvanced", host, **given)
    latent = drawing.call("SanaEmptyLatent", width=SIZE, height=SIZE)[0]
    sampled = drawing.call("SanaSCMSample", model=model, positive=positive, latent_image=latent, seed=seed)[0]
    return drawing.decode(vae, sampled)[0].float()


def wanted(one: Sketched) -> torch.Tensor:
    return render(one.scene, SIZE, one.radius, one.centre).movedim(0, -1)


def test_shapes_are_where_their_outlines_are(host, parts, net):
    """None of these were in the training; without the ControlNet the shape is where the prompt says."""
    rng = random.Random(2026)
    for seed in range(6):
        one = random_sketched(rng)
        lines = outline(one.scene.shape, one.centre, one.radius).movedim(0, -1)
        off = [
            (controlled(host, parts, net, one.scene.prompt, lines, strength, seed) - wanted(one)).abs().mean().item()
            for strength in (1.0, 0.0)
        ]
        assert off[0] < 0.02 and off[1] > 2 * off[0], (one, off)


def test_the_template_s_sketch_is_followed(host, parts, net):
    """It is drawn on Sana Sketch's canvas, whose lines are not those of the training to the last pixel."""
    graph = templates()["sana_sprint_sketch"].graph
    lines, _ = sketch.render(graph["3"]["inputs"]["sketch"], SIZE, SIZE)
    image = controlled(host, parts, net, graph["5"]["inputs"]["text"], lines[0], 1.0, seed=0)
    inside, outside = image[140:188, 150:198], image[:100]
    assert (inside - torch.tensor([245, 215, 60]) / 255).abs().mean() < 0.06
    assert (outside - torch.tensor([140, 60, 180]) / 255).abs().mean() < 0.06
