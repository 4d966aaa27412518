"""Sana PAG among ComfyUI's own nodes: other samplers and wrappers, compilation, and the core node for UNets."""

from __future__ import annotations

import core_nodes
import drawing
import in_process
import pytest
from controlling import PROMPT


@pytest.fixture(scope="module")
def sana(home, sana_reference):
    with in_process.comfyui(home):
        core_nodes.load_nodes()
        yield drawing.call("SanaLoadPipeline", pipeline="tiny-sana")


@pytest.fixture(scope="module")
def guided(sana):
    return drawing.call("SanaPAG", model=sana[0], scale=3.0, layers="1")[0]


@pytest.fixture(scope="module")
def expected(sana, guided):
    return drawing.flow((guided, *sana[1:]), PROMPT, "a green square")


def again(sana, model):
    return drawing.flow((model, *sana[1:]), PROMPT, "a green square")


def test_easycache_keeps_the_predictions_apart(sana, guided, expected):
    """What it reuses is kept by the prompt's id, which the perturbed prediction has another of."""
    if "EasyCache" not in core_nodes.load_nodes():
        pytest.skip("this ComfyUI has no EasyCache")
    given = {"start_percent": 0.0, "end_percent": 1.0}
    never = core_nodes.one("EasyCache", model=guided, reuse_threshold=0.0, **given)
    assert drawing.difference(again(sana, never), expected) < drawing.ROUNDING
    often = core_nodes.one("EasyCache", model=guided, reuse_threshold=3.0, **given)
    plain = core_nodes.one("EasyCache", model=sana[0], reuse_threshold=3.0, **given)
    apart = drawing.difference(again(sana, often), again(sana, plain))
    assert apart > 0.3 * drawing.difference(expected, again(sana, sana[0])), "the guidance was lost in the cache"


def test_a_core_guider_and_sampler(sana, guided, expected):
    positive, negative = drawing.flow_conditions(sana[1], PROMPT, "a green square")
    guider = core_nodes.one("CFGGuider", model=guided, positive=positive, negative=negative, cfg=4.5)
    given = {
        "guider": guider,
        "noise": core_nodes.one("RandomNoise", noise_seed=0),
        "sampler": drawing.call("SanaFlowSampler")[0],
        "sigmas": drawing.call("SanaFlowSigmas", steps=4, model=guided)[0],
        "latent_image": drawing.call("SanaEmptyLatent", width=64, height=64)[0],
    }
    sampled = core_nodes.one("SamplerCustomAdvanced", **given)
    assert drawing.difference(drawing.decode(sana[2], sampled), expected) < drawing.ROUNDING


def test_the_core_node_names_ours(sana):
    other = core_nodes.one("PerturbedAttentionGuidance", model=sana[0], scale=3.0)
    with pytest.raises(ValueError, match="PerturbedAttentionGuidance: use Sana PAG"):
        again(sana, other)


def test_the_model_keeps_its_attention(sana, guided, expected):
    attention = drawing.network_of(guided).transformer_blocks[1].attn1
    assert type(attention.processor).__name__ == "LinearAttention"
    assert drawing.difference(again(sana, sana[0]), expected) > 1e-3


def test_compiled(sana, guided, expected):
    """Two graphs, with and without the perturbation, and no break; a second run compiles nothing."""
    from torch import _dynamo
    from torch._dynamo.testing import CompileCounter
    from torch._dynamo.utils import counters

    _dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    fast = core_nodes.one("TorchCompileModel", model=guided, backend=counter)
    counts = []
    for _ in range(2):
        assert drawing.difference(again(sana, fast), expected) < drawing.ROUNDING
        counts.append(counter.frame_count)
    _dynamo.reset()
    assert counts[0] == counts[1] and not counters["graph_break"]
