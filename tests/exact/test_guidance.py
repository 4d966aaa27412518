"""Guidance on the embedded host: one pass, two passes, or both prompts in one batch, to the same answer."""

from __future__ import annotations

import controlling
import drawing
import filming
import pytest
import torch
from controlling import PROMPT
from sana_nodes.networks.memory import transformer_memory

LIMIT = 1e-4
WAN, NEGATIVE = "tiny-video", "a green square"


@pytest.fixture
def embedded(home, reference):
    from sana_nodes import host as hosts

    chosen = hosts.use("embedded")
    chosen.folders.models = [home / "models"]
    yield chosen
    hosts._current = None


@pytest.fixture
def video(embedded, video_references):
    return drawing.call("SanaLoadPipeline", pipeline=WAN)


@pytest.fixture
def together(monkeypatch):
    """As on a card that has memory for anything; the bytes that were asked for."""
    from sana_nodes.host.embedded import runtime

    asked = []

    def fits(device, needed):
        asked.append(needed)
        return True

    monkeypatch.setattr(runtime, "fits_free_memory", fits)
    return asked


@pytest.fixture
def batches(monkeypatch):
    """The batch size, and whether there is a mask, of each call of a transformer from here on."""
    from sana_nodes.host.embedded import runtime

    seen, true = [], runtime.network_inputs

    def inputs(*arguments, **options):
        given = true(*arguments, **options)
        seen.append((len(given["hidden_states"]), "encoder_attention_mask" in given))
        return given

    monkeypatch.setattr(runtime, "network_inputs", inputs)
    return seen


@pytest.mark.parametrize("negative", ["", filming.NEGATIVE, 3 * filming.PROMPT], ids=["empty", "shorter", "longer"])
@pytest.mark.parametrize("image", [None, torch.rand(1, 64, 64, 3)], ids=["text", "image"])
@pytest.mark.parametrize("batch", [1, 2])
def test_both_prompts_in_one_batch(video, video_references, together, batches, negative, image, batch):
    given = {"negative": negative, "image": image, "batch": batch, "steps": 2}
    assert drawing.difference(filming.ours(video, **given), filming.theirs(video_references[WAN], **given)) < LIMIT
    assert set(batches) == {(2 * batch, True)} and len(batches) == 2 and len(together) == 1


def test_prompts_of_one_length_need_no_mask(embedded):
    from sana_nodes.networks.transformer import padded_contexts

    same, none = padded_contexts([torch.ones(1, 3, 4), torch.zeros(1, 3, 4)])
    assert same.shape == (2, 3, 4) and none is None
    padded, mask = padded_contexts([torch.ones(1, 3, 4), torch.full((1, 5, 4), 2.0)])
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert torch.equal(padded[0, :3], torch.ones(3, 4)) and not padded[0, 3:].any() and (padded[1] == 2).all()


def test_guidance_of_1_runs_one_pass(video, batches, together):
    filming.ours(video, cfg=1.0, steps=2)
    assert batches == [(1, False)] * 2 and not together


def test_a_processor_computes_them_one_after_the_other(video, batches):
    filming.ours(video, cfg=6.0, steps=2)
    assert batches == [(1, False)] * 4


def test_an_image_in_one_batch(embedded, sana_reference, together, batches):
    sana = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    mine = drawing.flow(sana, PROMPT, NEGATIVE, batch=2)
    assert drawing.difference(mine, controlling.theirs(sana_reference, negative=NEGATIVE, batch=2)) < LIMIT
    assert {size for size, _ in batches} == {4} and len(together) == 1


def test_with_a_controlnet_they_are_computed_one_after_the_other(embedded, sana_reference, together, batches):
    sana = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    drawing.flow(sana, PROMPT, NEGATIVE, led=controlling.controlled(embedded, controlling.image(), sana[2]))
    assert {size for size, _ in batches} == {1} and not together


def conditionings(video) -> list[torch.Tensor]:
    given = {"clip": video[1], "prompt": filming.PROMPT, "negative_prompt": filming.NEGATIVE, "motion_score": 30}
    return [conditioning[0][0] for conditioning in drawing.call("SanaEncodeVideoPrompt", **given)]


def test_what_a_card_is_asked_for_is_a_step_of_twice_the_batch(video, together):
    filming.ours(video, steps=1)
    filming.ours(video, steps=1, batch=2)
    filming.ours(video, steps=1, image=torch.rand(1, 64, 64, 3))
    one, two, timed = together
    memory = transformer_memory(video[0].module, video[0].spec.patch)
    prompt = max(len(states[0]) for states in conditionings(video))
    assert one == memory.step((2, 16, 2, 8, 8), 4, prompt)
    assert two == memory.step((4, 16, 2, 8, 8), 4, prompt) and timed == memory.step((2, 16, 2, 8, 8), 4, prompt, True)


@pytest.mark.parametrize("free,needed,fits", [(10, 13, True), (10, 15, False)])
def test_free_memory_of_a_card_counts_what_torch_holds_unused(monkeypatch, free, needed, fits):
    from sana_nodes.host.embedded import devices

    for name, value in (("memory_reserved", 7), ("memory_allocated", 3), ("mem_get_info", (free, 100))):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert devices.fits_free_memory(torch.device("cuda"), needed) is fits
    assert not any(devices.fits_free_memory(torch.device(kind), 0) for kind in ("cpu", "mps"))
