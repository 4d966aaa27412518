"""Attention to the prompt by the function that a node or a flag chose."""

from __future__ import annotations

import drawing
import in_process
import pytest
import torch
from controlling import PROMPT
from torch.nn import functional

STEPS = 2


@pytest.fixture(scope="module")
def loaded(home, reference):
    with in_process.comfyui(home):
        yield drawing.call("SanaLoadPipeline", pipeline="tiny")


@pytest.fixture(scope="module")
def expected(loaded):
    return drawing.ours(loaded, PROMPT, steps=STEPS)


def chosen_by_node(loaded, override):
    """As ModelAttentionBackend and nodes for SageAttention do."""
    model = loaded[0].clone()
    options = model.model_options["transformer_options"]
    model.model_options["transformer_options"] = {**options, "optimized_attention_override": override}
    return model, *loaded[1:]


@pytest.mark.parametrize("name", ["pytorch", "split", "sub_quad"])
def test_a_node_chooses_one_of_cores(loaded, expected, name):
    from comfy.ldm.modules import attention

    function, seen = getattr(attention, f"attention_{name}"), []

    def override(replaced, *args, **kwargs):
        seen.append(args[0].shape)
        return function(*args, **kwargs)

    made = drawing.ours(chosen_by_node(loaded, override), PROMPT, steps=STEPS)
    assert len(seen) == STEPS * len(drawing.network_of(loaded[0]).transformer_blocks)
    assert drawing.difference(made, expected) < drawing.ROUNDING


def test_what_a_node_gives_is_the_attention(loaded, expected):
    def nothing(replaced, query, *args, **kwargs):
        return torch.zeros_like(query)

    made = drawing.ours(chosen_by_node(loaded, nothing), PROMPT, steps=STEPS)
    assert drawing.difference(made, expected) > 1e-3
    assert drawing.difference(drawing.ours(loaded, PROMPT, steps=STEPS), expected) < drawing.ROUNDING, "it was a call's"


def counted(function, seen: list):
    def call(*args, **kwargs):
        seen.append(function.__name__)
        return function(*args, **kwargs)

    call.__name__ = function.__name__
    return call


@pytest.mark.parametrize(
    ("name", "flag"), [("split", "use_split_cross_attention"), ("sub_quad", "use_quad_cross_attention")]
)
def test_a_flag_chooses(loaded, expected, monkeypatch, name, flag):
    from comfy.cli_args import args
    from comfy.ldm.modules import attention

    seen: list = []
    monkeypatch.setattr(attention, "optimized_attention", counted(getattr(attention, f"attention_{name}"), seen))
    drawing.ours(loaded, PROMPT, steps=STEPS)
    assert not seen, "nobody asked for it: ComfyUI takes it where there is no other"
    monkeypatch.setattr(args, flag, True)
    assert drawing.difference(drawing.ours(loaded, PROMPT, steps=STEPS), expected) < drawing.ROUNDING
    assert len(seen) == STEPS * len(drawing.network_of(loaded[0]).transformer_blocks)


def stand_in(name: str, seen: list):
    """In the place of ComfyUI's function for a library that is not here."""

    def call(query, key, value, heads, mask=None, **kwargs):
        assert kwargs["skip_reshape"] and kwargs["skip_output_reshape"] and heads == query.shape[1]
        seen.append(query.dtype)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    call.__name__ = name
    return call


@pytest.mark.parametrize(
    ("name", "dtype", "used"),
    [
        ("attention_xformers", torch.float32, True),
        ("attention_flash", torch.float32, False),
        ("attention_flash", torch.bfloat16, True),
        ("attention_sage", torch.bfloat16, False),
        ("attention_comfy_kitchen_int8", torch.bfloat16, False),
    ],
)
def test_a_library_is_used_where_it_gives_the_same_answer(loaded, monkeypatch, name, dtype, used):
    from comfy.ldm.modules import attention
    from sana_nodes.host.comfyui.attention import chosen

    seen: list = []
    monkeypatch.setattr(attention, "optimized_attention", stand_in(name, seen))
    attend = chosen({}) or functional.scaled_dot_product_attention
    values = [torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(3)]
    made = attend(*values, attn_mask=None)
    assert bool(seen) == used and torch.allclose(made, functional.scaled_dot_product_attention(*values))
    if name == "attention_flash":
        seen.clear()
        attend(*values, attn_mask=torch.zeros(1, 1, 1, 6, dtype=dtype))
        assert not seen, "it takes no mask"
