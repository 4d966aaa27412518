"""Perturbed-attention guidance is diffusers' SanaPAGPipeline's, on both hosts."""

from __future__ import annotations

from functools import partial

import controlling
import drawing
import pytest
import tiny
import torch
from controlling import PROMPT

LIMIT = 1e-4
NEGATIVE = "a green square"


@pytest.fixture
def sana(host, sana_reference):
    return drawing.call("SanaLoadPipeline", pipeline="tiny-sana")


def pag(parts, scale=3.0, layers="1"):
    return drawing.call("SanaPAG", model=parts[0], scale=scale, layers=layers)[0], *parts[1:]


def theirs(pipeline, layers="1", scale=3.0, **given):
    from diffusers import SanaPAGPipeline

    names = [f"transformer_blocks.{number}" for number in layers.split(", ")]
    kind = partial(SanaPAGPipeline, pag_applied_layers=names)
    return controlling.theirs(pipeline, kind=kind, pag_scale=scale, **given)


@pytest.mark.parametrize(
    ("cfg", "layers", "scale", "solver"),
    [
        (4.5, "1", 3.0, "dpm_solver++"),
        (1.0, "1", 3.0, "euler"),
        (4.5, "0, 2", 1.5, "euler"),
        (4.5, "1", 0.0, "dpm_solver++"),
    ],
)
def test_it_is_diffusers_result(sana, sana_reference, cfg, layers, scale, solver):
    mine = drawing.flow(pag(sana, scale, layers), PROMPT, NEGATIVE, cfg=cfg, solver=solver, seed=3)
    given = {"negative": NEGATIVE, "guidance_scale": cfg, "solver": solver, "seed": 3}
    assert drawing.difference(mine, theirs(sana_reference, layers, scale, **given)) < LIMIT
    plain = drawing.flow(sana, PROMPT, NEGATIVE, cfg=cfg, solver=solver, seed=3)
    assert drawing.difference(plain, controlling.theirs(sana_reference, **given)) < LIMIT  # the MODEL stays as it is
    assert (drawing.difference(mine, plain) > 1e-3) is (scale > 0)


def test_sizes_and_batches(sana, sana_reference):
    size = {"width": 96, "height": 32, "batch": 2}
    mine = drawing.flow(pag(sana), PROMPT, NEGATIVE, **size)
    assert drawing.difference(mine, theirs(sana_reference, negative=NEGATIVE, **size)) < LIMIT


@pytest.mark.parametrize("cfg", [4.5, 1.0])
def test_norms_are_left_out_where_diffusers_leaves_them_out(host, sana_reference, home, cfg):
    """SANA 1.5 has norms of queries and keys."""
    network = tiny.image_transformer(qk_norm="rms_norm_across_heads")
    network.save_pretrained(home / "models" / "diffusion_models" / "tiny-normed")
    _, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    parts = drawing.call("SanaLoadTransformer", model_name="tiny-normed")[0], clip, vae
    kept, sana_reference.transformer = sana_reference.transformer, network
    try:
        mine = drawing.flow(pag(parts), PROMPT, NEGATIVE, cfg=cfg)
        expected = theirs(sana_reference, negative=NEGATIVE, guidance_scale=cfg)
        assert drawing.difference(mine, expected) < LIMIT
        plain = controlling.theirs(sana_reference, negative=NEGATIVE, guidance_scale=cfg)
        assert drawing.difference(drawing.flow(parts, PROMPT, NEGATIVE, cfg=cfg), plain) < LIMIT
    finally:
        sana_reference.transformer = kept


def test_both_prompts_in_one_batch(home, sana_reference, monkeypatch):
    """As on a card that has memory for it."""
    from sana_nodes import host as hosts
    from sana_nodes.host.embedded import runtime

    monkeypatch.setattr(runtime, "fits_free_memory", lambda device, needed: True)
    hosts.use("embedded").folders.models = [home / "models"]
    try:
        parts = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
        mine = drawing.flow(pag(parts), PROMPT, NEGATIVE)
    finally:
        hosts._current = None
    assert drawing.difference(mine, theirs(sana_reference, negative=NEGATIVE)) < LIMIT


def test_the_second_replaces_the_first(sana):
    twice = pag(pag(sana, 5.0, "0"), 3.0, "1")
    once = drawing.flow(pag(sana), PROMPT, steps=2)
    assert drawing.difference(drawing.flow(twice, PROMPT, steps=2), once) < drawing.ROUNDING
    off = drawing.flow(pag(twice, 0.0), PROMPT, steps=2)
    assert drawing.difference(off, drawing.flow(sana, PROMPT, steps=2)) < drawing.ROUNDING


def test_a_controlnet_and_a_mask_act_on_the_perturbed_prediction_too(sana, host):
    """An empty block list of differences: with a scale near 0 nothing but the guidance changes."""
    image = controlling.image()
    led = controlling.controlled(host, image, sana[2])
    latent = {"samples": torch.randn(1, 32, 2, 2), "noise_mask": torch.tensor([[[0.0, 1.0]] * 2])}
    given = {"led": led, "latent_image": latent, "steps": 2}
    plain = drawing.flow(sana, PROMPT, **given)
    assert drawing.difference(drawing.flow(pag(sana, 1e-4), PROMPT, **given), plain) < 1e-3
    assert drawing.difference(drawing.flow(pag(sana), PROMPT, **given), plain) > 1e-3


@pytest.mark.parametrize("layers", ["", "x", "1, 3", "-1", "1.5"])
def test_layers_that_are_no_blocks_are_refused(sana, layers):
    with pytest.raises(ValueError, match=r"blocks 0 to 2|give the numbers of blocks"):
        pag(sana, layers=layers)
    from sana_nodes import NODE_CLASS_MAPPINGS

    said = NODE_CLASS_MAPPINGS["SanaPAG"].VALIDATE_INPUTS(layers=layers)
    assert said is True if layers == "1, 3" else "give the numbers of blocks" in said


def test_other_models_are_refused(host, reference, video_references):
    for name, model in (("tiny", "SANA-Sprint"), ("tiny-video", "SANA-Video")):
        parts = drawing.call("SanaLoadPipeline", pipeline=name)
        with pytest.raises(ValueError, match=f"this MODEL is {model}: perturbed-attention guidance is for"):
            pag(parts)
