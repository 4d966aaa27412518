"""Sana Compile on both hosts: the images of the model without it, compiled by a backend that compiles nothing."""

from __future__ import annotations

import compiling
import drawing
import long_films as films
import pytest
from torch import _dynamo


@pytest.fixture
def counter():
    with compiling.counted() as counter:
        yield counter


def test_blocks(host, counter):
    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    fast, fast_vae = drawing.call("SanaCompile", model=model, mode="blocks", vae=vae)
    expected = drawing.ours((model, clip, vae), "a red ring", steps=2)
    assert counter.frame_count == 0, "the model and the VAE that are given stay as they are"
    for prompt in ("a red ring", "a green square in the top right of an orange background"):
        expected = drawing.ours((model, clip, vae), prompt, steps=2)
        assert drawing.difference(drawing.ours((fast, clip, fast_vae), prompt, steps=2), expected) < drawing.ROUNDING
        count = counter.frame_count
    assert counter.frame_count == count > 6, "blocks of the transformer and layers of the decoder, once"
    off, off_vae = drawing.call("SanaCompile", model=fast, mode="off", vae=fast_vae)
    counter.clear()
    _dynamo.reset()
    drawing.ours((off, clip, off_vae), "a red ring", steps=2)
    assert counter.frame_count == 0


def test_blocks_of_a_long_video(host, counter, long_folder):
    model, clip, vae = films.load()
    (fast, _) = drawing.call("SanaCompile", model=model, mode="blocks")
    counts = []
    for text in ("a red ring", "a blue square falls on a green field"):
        positive = films.prompt((model, clip, vae), text)
        expected, before = films.sampled((model, clip, vae), positive, 33)
        made, state = films.sampled((fast, clip, vae), positive, 33)
        assert films.apart(made["samples"], expected["samples"]) < 1e-5
        assert all(films.apart(value, before.kept[name]) < 1e-5 for name, value in state.kept.items())
        counts.append(counter.frame_count)
    assert 0 < counts[0] == counts[1] <= 8, "no block after the second is compiled, nor another video's"


def test_graphs_fall_back_without_cuda(host, caplog):
    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    made, nothing = drawing.call("SanaCompile", model=model, mode="graphs")
    assert nothing is None and "there is no CUDA on this device (cpu)" in caplog.text
    expected = drawing.ours((model, clip, vae), "a red ring", steps=2)
    assert drawing.difference(drawing.ours((made, clip, vae), "a red ring", steps=2), expected) < drawing.ROUNDING


def test_another_model_is_refused(host):
    with pytest.raises(ValueError, match="is not SANA"):
        drawing.call("SanaCompile", model=type("Other", (), {"model": None})(), mode="blocks")
