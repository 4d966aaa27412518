"""Core TorchCompileModel: graphs and graph breaks are counted with a backend that compiles nothing."""

from __future__ import annotations

import asyncio

import drawing
import in_process
import long_films as films
import pytest
from torch import _dynamo
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters


@pytest.fixture
def compiling(home, reference):
    """TorchCompileModel with a backend, and the counter of graphs that is that backend."""
    from sana_nodes import host as hosts

    in_process.start_comfyui(home)
    hosts.use("comfyui")
    from comfy_extras import nodes_torch_compile

    import nodes

    del nodes
    _dynamo.reset()
    counters.clear()
    counter = CompileCounter()

    def compiled(model):
        made = nodes_torch_compile.TorchCompileModel.execute(model, counter)
        made = asyncio.run(made) if asyncio.iscoroutine(made) else made
        return made.args[0] if hasattr(made, "args") else made[0]

    yield compiled, counter
    _dynamo.reset()
    hosts._current = None


def test_steps_and_prompts_share_graphs(compiling):
    """Four steps are one graph; the second length of a prompt is one more, in which the length is a variable."""
    compiled, counter = compiling
    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    fast = compiled(model)
    prompts = ("a red ring", "a green square in the top right of an orange background", "ring", "a blue ring " * 9)
    counts = []
    for prompt in prompts:
        made = drawing.ours((fast, clip, vae), prompt, steps=4)
        assert drawing.difference(made, drawing.ours((model, clip, vae), prompt, steps=4)) < drawing.ROUNDING
        counts.append(counter.frame_count)
    assert counts[0] > 0 and counts[1:] == [2 * counts[0]] * 3
    assert not counters["graph_break"]


def test_blocks_of_a_long_video_share_graphs(compiling, long_folder):
    """None is compiled after the second block, which is shorter than the first, nor for a second video."""
    compiled, counter = compiling
    model, clip, vae = films.load()
    counts, asked = [], {"frames": 33, "block_frames": 2}
    for seed in (5, 6, 7):
        positive = films.story((model, clip, vae), "a red ring", "a blue square falls on a green field", "ring")
        expected, _ = films.sampled((model, clip, vae), positive, seed=seed, **asked)
        made, _ = films.sampled((compiled(model), clip, vae), positive, seed=seed, **asked)
        assert films.apart(made["samples"], expected["samples"]) < 1e-5
        counts.append(counter.frame_count)
    assert 0 < counts[0] <= counts[1] == counts[2] <= _dynamo.config.recompile_limit and not counters["graph_break"]
