"""torch.compile takes a transformer whole: no graph break, and no compilation for another step or prompt.

For another block of a long video: tests/slow/test_long_compile.py.
"""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from sana_nodes.networks.fast_transformer import use_fast_transformer
from torch import _dynamo
from torch._dynamo.testing import CompileCounter

LENGTHS = (9, 9, 31, 12, 77, 2)
"""Tokens of the prompts: two steps with the first; the second length makes the length a variable."""


def image_inputs(length: int, step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "hidden_states": torch.randn(1, 32, 6, 10, generator=generator),
        "encoder_hidden_states": torch.randn(1, length, 48, generator=generator),
        "timestep": torch.rand(1, generator=generator),
        "guidance": torch.rand(1, generator=generator),
        "return_dict": False,
    }


def video_inputs(length: int, step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "hidden_states": torch.randn(1, 16, 2, 6, 10, generator=generator),
        "encoder_hidden_states": torch.randn(1, length, 48, generator=generator),
        "timestep": torch.rand(1, generator=generator) * 1000,
        "return_dict": False,
    }


@pytest.mark.parametrize("part", ["whole", "blocks"])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [(tiny.transformer, image_inputs), (tiny.video_transformer, video_inputs)],
    ids=["image", "video"],
)
def test_prompts_and_steps_share_one_graph(make, inputs, part):
    network = use_fast_transformer(make()).requires_grad_(False)
    compiled, counter = copy.deepcopy(network), CompileCounter()
    _dynamo.reset()
    for one in [compiled] if part == "whole" else compiled.transformer_blocks:
        one.compile(backend=counter, fullgraph=True)
    counts = []
    with torch.no_grad():
        for step, length in enumerate(LENGTHS):
            given = inputs(length, step)
            assert (compiled(**given)[0] - network(**given)[0]).abs().max() < 1e-5
            counts.append(counter.frame_count)
    graphs = 1 if part == "whole" else 2  # the channels of the first block's tokens are not last in memory
    assert counts[:2] == [graphs] * 2, "another step is no other graph, nor is a third block"
    assert counts[2:] == [2 * graphs] * 4, "once more for prompts of every length"
