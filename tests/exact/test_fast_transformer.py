"""The image transformer in fewer passes, against diffusers' own forward on the same weights."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from network_calls import image_inputs as inputs
from sana_nodes.host.embedded.devices import CASTING
from sana_nodes.networks import fast_layers, precision
from sana_nodes.networks.fast_transformer import FastBlock, LinearAttention, use_fast_transformer

NORM = "rms_norm_across_heads"


def both(network, given: dict, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' output and ours."""
    given = {k: v.to(dtype) if torch.is_tensor(v) and k != "timestep" else v for k, v in given.items()}
    with torch.no_grad():
        return network(**given)[0], use_fast_transformer(copy.deepcopy(network))(**given)[0]


@pytest.mark.parametrize("norm", [NORM, None], ids=["norm", "no norm"])
@pytest.mark.parametrize("guidance", [True, False], ids=["guidance", "no guidance"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sides": (1, 1)},
        {"lengths": (1,)},
        {"lengths": (9,), "masked": True},
        {"batch": 2, "lengths": (3, 9), "masked": True},
        {"batch": 3, "lengths": (9,)},
        {"sides": (17, 31)},
    ],
    ids=["plain", "one token", "one word", "mask", "unequal prompts", "batch", "more tokens than one step"],
)
def test_it_is_diffusers_answer(norm, guidance, given):
    network = tiny.transformer(qk_norm=norm, guidance_embeds=guidance)
    theirs, mine = both(network, inputs(network, **given))
    assert (mine - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max())


@pytest.mark.parametrize("changes", [{"patch_size": 2}, {"attention_bias": True}, {"norm_elementwise_affine": True}])
def test_other_configs(changes):
    network = tiny.transformer(**changes)
    theirs, mine = both(network, inputs(network))
    assert (mine - theirs).abs().max() < 1e-5


def test_what_a_controlnet_adds_and_what_it_makes():
    network, control = tiny.transformer(guidance_embeds=False, qk_norm=None), tiny.controlnet()
    given = inputs(network)
    hint = torch.randn(1, 32, 6, 10)
    with torch.no_grad():
        parts = control(**given, controlnet_cond=hint)[0]
        fast = use_fast_transformer(copy.deepcopy(control))(**given, controlnet_cond=hint)[0]
    for a, b in zip(parts, fast):
        assert a.abs().max() > 1e-3 and (a - b).abs().max() < 1e-5
    theirs, mine = both(network, {**given, "controlnet_block_samples": parts})
    assert (mine - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_layers_that_cast(stored):
    network = precision.use_casting_layers(tiny.transformer(), CASTING, stored, torch.float32)
    theirs, mine = both(network, inputs(network))
    assert (mine - theirs).abs().max() < 1e-5


def test_a_lora_beside_a_layer_acts():
    from peft import LoraConfig

    network = tiny.transformer()
    network.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_k", "to_out.0", "conv_point"], init_lora_weights=False)
    )
    network.requires_grad_(False)
    theirs, mine = both(network, inputs(network))
    network.disable_adapters()
    without, _ = both(network, inputs(network))
    assert (mine - theirs).abs().max() < 1e-5 < (without - theirs).abs().max()


def test_inputs_are_left_alone():
    network = use_fast_transformer(tiny.transformer())
    given = inputs(network)
    before = {k: v.clone() for k, v in given.items() if torch.is_tensor(v)}
    with torch.no_grad():
        first, second = network(**given)[0], network(**given)[0]
    assert torch.equal(first, second) and all(torch.equal(given[k], v) for k, v in before.items())


def test_blocks_leave_their_input_alone():
    """A ControlNet keeps each block's output while the next one computes."""
    block = use_fast_transformer(tiny.transformer()).transformer_blocks[0]
    x, caption, time = torch.randn(1, 6, 64), torch.randn(1, 4, 64), torch.randn(1, 6 * 64)
    before = x.clone()
    with torch.no_grad():
        block(x, None, caption, None, time, 2, 3)
    assert torch.equal(x, before)


def test_gradients_go_diffusers_way():
    network = tiny.transformer()
    given = inputs(network)
    fast = use_fast_transformer(copy.deepcopy(network))
    for one in (network, fast):
        one(**given)[0].square().sum().backward()
    name = "transformer_blocks.0.ff.conv_inverted.weight"
    assert (network.get_parameter(name).grad - fast.get_parameter(name).grad).abs().max() < 1e-4


def test_an_unknown_norm_keeps_diffusers_attention():
    network = use_fast_transformer(tiny.transformer(qk_norm="layer_norm_across_heads"))
    block = network.transformer_blocks[0]
    assert isinstance(block, FastBlock) and not isinstance(block.attn1.processor, LinearAttention)


def test_twice_is_once():
    network = use_fast_transformer(use_fast_transformer(tiny.transformer()))
    assert type(network.transformer_blocks[0]).__mro__.count(FastBlock) == 1


@pytest.mark.parametrize("norm", [NORM, None], ids=["norm", "no norm"])
def test_bfloat16_is_no_farther_from_float32_than_diffusers(norm):
    """Root mean square over many seeds; 1.1 leaves room for the chance of where rounding falls."""
    errors = torch.zeros(2)
    for seed in range(24):
        half = tiny.transformer(seed, qk_norm=norm).to(torch.bfloat16)
        exact = tiny.transformer(seed, qk_norm=norm)
        exact.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        given = {
            k: v.bfloat16().float() if torch.is_tensor(v) and k != "timestep" else v
            for k, v in inputs(exact, seed=seed, sides=(20, 20)).items()
        }
        with torch.no_grad():
            reference = exact(**given)[0]
        errors += torch.stack([(one.float() - reference).square().mean() for one in both(half, given, torch.bfloat16)])
    theirs, mine = errors.sqrt()
    assert 0 < mine < 1.1 * theirs


def test_steps_cover_every_token(monkeypatch):
    network = tiny.transformer()
    given = inputs(network, sides=(5, 7))
    for step in (1, 6, 35, 99):
        monkeypatch.setattr(fast_layers, "TOKENS", step)
        theirs, mine = both(network, given)
        assert (mine - theirs).abs().max() < 1e-5
