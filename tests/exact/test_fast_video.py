"""The video transformer in fewer passes, against diffusers' own forward on the same weights."""

from __future__ import annotations

import copy
import sys

import pytest
import tiny
import torch
from network_calls import video_inputs as inputs
from sana_nodes.host.embedded.devices import CASTING
from sana_nodes.networks import fast_layers, precision
from sana_nodes.networks.fast_layers import CrossAttention, ProductOfPixels
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.networks.fast_video_transformer import (
    SIZES,
    FastPositions,
    FastVideoBlock,
    FastVideoFeedForward,
    Rotary,
    RotaryLinearAttention,
    frames_of_step,
)

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))  # last: it has a graphs.py as support has

from tracing import allocated_peak

LIMIT = 1e-5
"""The largest difference in float32, relative to the largest value."""


def both(network, given: dict, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' output and ours."""
    given = {k: v.to(dtype) if torch.is_tensor(v) and k != "timestep" else v for k, v in given.items()}
    with torch.no_grad():
        return network(**given)[0], use_fast_transformer(copy.deepcopy(network))(**given)[0]


def assert_same(network, given: dict) -> None:
    theirs, mine = both(network, given)
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() < LIMIT * theirs.abs().max()


GIVEN = {
    "plain": {},
    "image to video": {"timed": True},
    "one frame": {"cells": (1, 6, 10)},
    "one token": {"cells": (1, 2, 2)},
    "one token, image to video": {"cells": (1, 2, 2), "timed": True},
    "one word": {"lengths": (1,)},
    "mask": {"lengths": (9,), "masked": True},
    "unequal prompts": {"batch": 2, "lengths": (3, 9), "masked": True},
    "batch of three": {"batch": 3},
    "batch, image to video": {"batch": 2, "timed": True},
    "more tokens than one step": {"cells": (5, 34, 38)},
    "a frame of more tokens than one step": {"cells": (2, 48, 54)},
}
CONFIGS = {
    "norm": {},
    "no norm": {"qk_norm": None},
    "guidance": {"guidance_embeds": True},
    "biases": {"attention_bias": True},
    "norm with weights": {"norm_elementwise_affine": True},
    "cells as tokens": {"patch_size": (1, 1, 1)},
    "frames in pairs": {"patch_size": (2, 2, 2)},
    "other heads": {"num_attention_heads": 4, "attention_head_dim": 24, "cross_attention_dim": 96}
    | {"num_cross_attention_heads": 3},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_it_is_diffusers_answer(given):
    network = tiny.video_transformer()
    assert_same(network, inputs(network, **given))


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_config(changes, batch):
    network = tiny.video_transformer(**changes)
    assert_same(network, inputs(network, batch, cells=(4, 6, 10)))


def test_the_fast_forward_runs(monkeypatch):
    """What is compared above is ours: diffusers' blocks, attention and feed-forward are not called."""
    from diffusers.models.transformers import transformer_sana_video as theirs_of_video

    network = use_fast_transformer(tiny.video_transformer())
    block = network.transformer_blocks[0]
    assert isinstance(block, FastVideoBlock) and isinstance(block.ff, FastVideoFeedForward)
    assert isinstance(block.attn1.processor, RotaryLinearAttention) and isinstance(network.rope, FastPositions)
    assert isinstance(block.attn2.processor, CrossAttention) and isinstance(block.ff.conv_point, ProductOfPixels)
    for name in ("SanaVideoTransformerBlock", "GLUMBTempConv"):
        monkeypatch.delattr(getattr(theirs_of_video, name), "forward")
    for name in ("SanaLinearAttnProcessor3_0", "SanaAttnProcessor2_0"):
        monkeypatch.delattr(getattr(theirs_of_video, name), "__call__")
    with torch.no_grad():
        assert network(**inputs(network))[0].isfinite().all()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("first", ["casting", "fast"])
def test_layers_that_cast(stored, first):
    """Whether the fast layers come before the casting ones, as without ComfyUI, or after them."""
    network = tiny.video_transformer()
    fast = copy.deepcopy(network)
    steps = [lambda m: precision.use_casting_layers(m, CASTING, stored, torch.float32), use_fast_transformer]
    for step in steps if first == "casting" else steps[::-1]:
        step(fast)
    given = inputs(network)
    with torch.no_grad():
        theirs, mine = steps[0](network)(**given)[0], fast(**given)[0]
    assert fast.transformer_blocks[0].ff.conv_point.weight.dtype == stored
    assert (mine - theirs).abs().max() < LIMIT * theirs.abs().max()


@pytest.mark.parametrize("first", ["lora", "fast"])
def test_a_lora_beside_a_layer_acts(first):
    from peft import LoraConfig

    layers = ["to_q", "to_k", "to_out.0", "conv_inverted", "conv_point", "conv_temp"]
    config = LoraConfig(r=2, target_modules=layers, init_lora_weights=False)

    def with_lora(network):
        torch.manual_seed(5)
        network.add_adapter(config)
        return network.requires_grad_(False)

    plain = tiny.video_transformer()
    given = inputs(plain)
    fast = copy.deepcopy(plain)
    for step in (with_lora, use_fast_transformer) if first == "lora" else (use_fast_transformer, with_lora):
        step(fast)
    with torch.no_grad():
        without, theirs, mine = plain(**given)[0], with_lora(plain)(**given)[0], fast(**given)[0]
    limit = LIMIT * theirs.abs().max()
    assert (mine - theirs).abs().max() < limit < (without - theirs).abs().max()


def test_what_is_added_after_each_block():
    network = tiny.video_transformer()
    given = inputs(network)
    parts = tuple(torch.randn(1, 3 * 3 * 5, 64, generator=torch.Generator().manual_seed(n)) for n in range(2))
    theirs, mine = both(network, {**given, "controlnet_block_samples": parts})
    without, _ = both(network, given)
    limit = LIMIT * theirs.abs().max()
    assert (mine - theirs).abs().max() < limit < (without - theirs).abs().max()


@pytest.mark.parametrize("timed", [False, True])
def test_inputs_are_left_alone(timed):
    network = use_fast_transformer(tiny.video_transformer())
    given = inputs(network, timed=timed)
    before = {k: v.clone() for k, v in given.items() if torch.is_tensor(v)}
    with torch.no_grad():
        first, second = network(**given)[0], network(**given)[0]
    assert torch.equal(first, second) and all(torch.equal(given[k], v) for k, v in before.items())


@pytest.mark.parametrize("tokens", [1, 12])
def test_blocks_leave_their_inputs_alone(tokens):
    network = use_fast_transformer(tiny.video_transformer())
    x, caption, time = torch.randn(1, 12, 64), torch.randn(1, 4, 64), torch.randn(1, tokens, 6 * 64)
    before = [t.clone() for t in (x, caption, time)]
    with torch.no_grad():
        rotary = network.rope(torch.zeros(1, 16, 2, 4, 6))
        turns = rotary.turns.clone()
        network.transformer_blocks[0](x, None, caption, None, time, 2, 2, 3, rotary)
    assert all(torch.equal(a, b) for a, b in zip((x, caption, time, rotary.turns), (*before, turns)))


def test_weights_keep_their_names():
    network = tiny.video_transformer()
    fast = use_fast_transformer(copy.deepcopy(network))
    with torch.no_grad():
        fast(**inputs(network))
    theirs, mine = network.state_dict(), fast.state_dict()
    assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("timed", [False, True])
def test_gradients_go_diffusers_way(timed):
    network = tiny.video_transformer()
    given = inputs(network, timed=timed)
    fast = use_fast_transformer(copy.deepcopy(network))
    with torch.no_grad():
        fast(**given)
    for one in (network, fast):
        one(**given)[0].square().sum().backward()
    for name in ("ff.conv_inverted.weight", "attn1.to_k.weight", "ff.conv_temp.weight", "scale_shift_table"):
        theirs, mine = (one.get_parameter(f"transformer_blocks.0.{name}").grad for one in (network, fast))
        assert theirs.abs().max() > 0 and (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_an_unknown_norm_keeps_diffusers_attention():
    network = tiny.video_transformer(qk_norm="layer_norm_across_heads")
    block = use_fast_transformer(copy.deepcopy(network)).transformer_blocks[0]
    assert isinstance(block, FastVideoBlock) and not isinstance(block.attn1.processor, RotaryLinearAttention)
    assert_same(network, inputs(network))


@pytest.mark.parametrize("part", ["norm", "residual_connection"])
def test_an_unknown_feed_forward_keeps_diffusers_forward(part):
    network = tiny.video_transformer()
    feed_forward = network.transformer_blocks[1].ff
    setattr(feed_forward, part, torch.nn.Identity() if part == "norm" else True)
    fast = use_fast_transformer(copy.deepcopy(network)).transformer_blocks
    assert isinstance(fast[0].ff, FastVideoFeedForward) and not isinstance(fast[1].ff, FastVideoFeedForward)
    assert_same(network, inputs(network))


def test_dtypes_that_differ_go_diffusers_way():
    """A modulation in float64: diffusers computes the rest of the block in it."""
    block = tiny.video_transformer().transformer_blocks[0]
    block.attn2, block.ff = None, block.ff.double()
    block.scale_shift_table.data = block.scale_shift_table.data.double()
    network = use_fast_transformer(tiny.video_transformer())
    fast = use_fast_transformer(copy.deepcopy(block))
    x, time = torch.randn(1, 12, 64), torch.randn(1, 1, 6 * 64)
    assert isinstance(fast, FastVideoBlock) and not fast_layers.is_fast(fast, x, time)
    with torch.no_grad():
        rotary = network.rope(torch.zeros(1, 16, 2, 4, 6))
        theirs, mine = (one(x, None, None, None, time, 2, 2, 3, rotary) for one in (block, fast))
    assert mine.dtype == theirs.dtype == torch.float64 and (mine - theirs).abs().max() < 1e-5


def test_twice_is_once():
    network = use_fast_transformer(use_fast_transformer(tiny.video_transformer()))
    block = network.transformer_blocks[0]
    for part, fast in (
        (block, FastVideoBlock),
        (block.ff, FastVideoFeedForward),
        (block.ff.conv_point, ProductOfPixels),
        (network.rope, FastPositions),
    ):
        assert type(part).__mro__.count(fast) == 1
    assert not isinstance(block.attn1.processor.replaced, RotaryLinearAttention)


@pytest.mark.parametrize("norm", ["rms_norm_across_heads", None], ids=["norm", "no norm"])
@pytest.mark.parametrize("timed", [False, True], ids=["text", "image to video"])
def test_bfloat16_is_no_farther_from_float32_than_diffusers(norm, timed):
    """Root mean square over many seeds; 1.1 leaves room for the chance of where rounding falls."""
    errors = torch.zeros(2)
    for seed in range(16):
        half = tiny.video_transformer(seed, qk_norm=norm)
        positions = half.rope.freqs_cos, half.rope.freqs_sin
        half = half.to(torch.bfloat16)
        half.rope.freqs_cos, half.rope.freqs_sin = positions  # as from a file: only weights are bfloat16
        exact = tiny.video_transformer(seed, qk_norm=norm)
        exact.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        given = {
            k: v.bfloat16().float() if torch.is_tensor(v) and k != "timestep" else v
            for k, v in inputs(exact, seed=seed, cells=(3, 20, 20), timed=timed).items()
        }
        with torch.no_grad():
            reference = exact(**given)[0]
        errors += torch.stack([(one.float() - reference).square().mean() for one in both(half, given, torch.bfloat16)])
    theirs, mine = errors.sqrt()
    assert 0 < mine < 1.1 * theirs


@pytest.mark.parametrize("step", [1, 6, 35, 99])
def test_steps_cover_every_token_and_frame(monkeypatch, step):
    network = tiny.video_transformer()
    monkeypatch.setattr(fast_layers, "TOKENS", step)
    assert_same(network, inputs(network, cells=(5, 10, 14)))
    assert_same(network, inputs(network, 2, cells=(5, 10, 14), timed=True))


def test_the_feed_forward_takes_whole_frames():
    maps = torch.empty(9, 4, 10, 13, device="meta")
    assert frames_of_step(maps) == fast_layers.TOKENS_ON_DEVICES // 130
    assert frames_of_step(torch.empty(9, 4, 10, 13)) == fast_layers.TOKENS // 130
    assert frames_of_step(torch.empty(9, 4, 999, 999, device="meta")) == 1


def counted(network, monkeypatch) -> list:
    """The sizes for which diffusers' positions are computed from here on."""
    from diffusers.models.transformers import transformer_sana_video as theirs_of_video

    made = []
    true = theirs_of_video.WanRotaryPosEmbed.forward

    def forward(self, hidden_states):
        made.append(tuple(hidden_states.shape[2:]))
        return true(self, hidden_states)

    monkeypatch.setattr(theirs_of_video.WanRotaryPosEmbed, "forward", forward)
    return made


def test_rotations_are_computed_once_for_a_size(monkeypatch):
    network = use_fast_transformer(tiny.video_transformer())
    made = counted(network, monkeypatch)
    with torch.no_grad():
        for cells in ((3, 6, 10), (3, 6, 10), (3, 10, 6), (3, 6, 10)):
            network(**inputs(network, cells=cells))
        assert made == [(3, 6, 10), (3, 10, 6)]
        for frames in range(1, 5):
            network(**inputs(network, cells=(frames, 4, 4)))
    assert len(network.rope.kept) == SIZES


def test_rotations_are_forgotten_with_their_dtype_or_device():
    network = use_fast_transformer(tiny.video_transformer())
    with torch.no_grad():
        network(**inputs(network))
    assert network.rope.kept
    network.to(torch.bfloat16)
    assert not hasattr(network.rope, "kept")


def test_rotations_unpack_into_diffusers():
    network = tiny.video_transformer()
    x = torch.zeros(1, 16, 3, 6, 10)
    fast = use_fast_transformer(copy.deepcopy(network))
    with torch.inference_mode():
        kept, theirs = fast.rope(x), network.rope(x)
    assert isinstance(kept, Rotary) and all(torch.equal(a, b) for a, b in zip(kept, theirs, strict=True))
    assert kept.turns.shape == (45, 16) and kept.turns.is_complex()


def test_the_memory_of_a_further_frame_is_less_than_its_wide_maps():
    """By the CPU's allocator: the feed-forward alone would have 2 * 2 * mlp_ratio values of each token and channel."""
    network = use_fast_transformer(tiny.video_transformer(num_layers=2))
    videos = [inputs(network, cells=(frames, 48, 48)) for frames in (4, 24)]
    short, long = (allocated_peak(lambda given=given: network(**given)) for given in videos)
    assert (long - short) / 20 < 24 * 24 * 64 * 4 * 9
