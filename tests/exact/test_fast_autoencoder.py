"""DC-AE in fewer passes and in strips, against diffusers' own forward on the same weights."""

from __future__ import annotations

import copy
import sys

import drawing
import pytest
import tiny
import torch
from sana_nodes.host.embedded.devices import CASTING
from sana_nodes.networks import fast_autoencoder, precision
from sana_nodes.networks.autoencoder import use_fast_autoencoder
from sana_nodes.networks.fast_autoencoder import (
    FastDecoder,
    FastEncoder,
    FastResBlock,
    MultiscaleAttention,
)

SHUFFLES = {"downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"}
CONFIGS = {
    "sana": {},
    "lite": tiny.LITE,
    "shuffles": SHUFFLES,
    "empty first stage": {f"{half}_layers_per_block": (0, 2, 1, 1, 1, 1) for half in ("encoder", "decoder")},
    "no attention": {f"{half}_block_types": "ResBlock" for half in ("encoder", "decoder")},
    "no outer shortcuts": {"encoder_out_shortcut": False, "decoder_in_shortcut": False},
    "all ratios": {f"{half}_block_out_channels": (8, 8, 8, 32, 16, 64) for half in ("encoder", "decoder")} | SHUFFLES,
    "two scales": {f"{half}_qkv_multiscales": ((),) * 3 + ((3, 5),) * 3 for half in ("encoder", "decoder")},
    "no scales": {f"{half}_qkv_multiscales": ((),) * 6 for half in ("encoder", "decoder")},
    "silu": {"decoder_conv_act_fn": "silu", "decoder_act_fns": "relu"},
    "other activation": {"decoder_conv_act_fn": "gelu"},
}


@pytest.fixture
def tiny_steps(monkeypatch):
    """Strips of three rows, and float32 copies of a few values: maps of these tests have several of each."""
    monkeypatch.setattr(fast_autoencoder, "STRIP", 1)
    monkeypatch.setattr(fast_autoencoder, "LEAST_ROWS", 3)
    monkeypatch.setattr(fast_autoencoder, "STEP", 100)


def inputs(batch=1, rows=3, columns=5, seed=1) -> dict[str, torch.Tensor]:
    """Of seed 0 one query is almost orthogonal to all keys: there diffusers itself is 2e-5 from float64."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 32, rows, columns, generator=generator)
    pixels = torch.rand(batch, 3, rows * 32, columns * 32, generator=generator) * 2 - 1
    return {"decode": latents, "encode": pixels}


@torch.no_grad()
def both(module, given: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """diffusers' output and ours, of each half."""
    fast = use_fast_autoencoder(copy.deepcopy(module))
    return [tuple(getattr(one, half)(x, return_dict=False)[0] for one in (module, fast)) for half, x in given.items()]


def assert_equal(module, given) -> None:
    for theirs, mine in both(module, given):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 5), (2, 2, 3)], ids=["one cell", "odd", "batch"])
def test_it_is_diffusers_answer(config, size):
    assert_equal(tiny.autoencoder(**CONFIGS[config]), inputs(*size))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 2)], ids=["one cell", "batch"])
def test_strips_cover_every_row(tiny_steps, config, size):
    assert_equal(tiny.autoencoder(**CONFIGS[config]), inputs(*size))


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_any_height_of_strips(tiny_steps, monkeypatch, rows):
    monkeypatch.setattr(fast_autoencoder, "LEAST_ROWS", rows)
    assert_equal(tiny.autoencoder(), inputs())


def test_every_layer_is_replaced():
    names = {
        type(part).__name__: type(part).__mro__[1].__name__
        for part in use_fast_autoencoder(tiny.autoencoder()).modules()
    }
    assert {names[kind] for kind in fast_autoencoder.FAST} == {
        fast.__name__ for fast, _ in fast_autoencoder.FAST.values()
    }


def test_a_layer_of_another_kind_keeps_diffusers_forward():
    module = tiny.autoencoder(decoder_norm_types="batch_norm")
    fast = use_fast_autoencoder(copy.deepcopy(module))
    block = fast.decoder.up_blocks[0][-1]
    assert type(block).__name__ == "ResBlock" and not isinstance(block, FastResBlock)
    assert not isinstance(fast.decoder.up_blocks[-1][0].attn.processor, MultiscaleAttention)
    assert_equal(module, inputs())


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_layers_that_cast(stored):
    assert_equal(precision.use_casting_layers(tiny.autoencoder(), CASTING, stored, torch.float32), inputs())


@torch.no_grad()
def test_inputs_and_weights_are_left_alone(tiny_steps):
    module = use_fast_autoencoder(tiny.autoencoder())
    given, weights = inputs(), {name: value.clone() for name, value in module.state_dict().items()}
    for half, x in given.items():
        before = x.clone()
        first, second = (getattr(module, half)(x, return_dict=False)[0] for _ in range(2))
        assert torch.equal(first, second) and torch.equal(x, before)
    assert weights.keys() == tiny.autoencoder().state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("config", ["sana", "shuffles"])
def test_layers_leave_their_input_alone(tiny_steps, config):
    """Who calls a layer may keep its input, also where it is channels last already."""
    module = use_fast_autoencoder(tiny.autoencoder(**CONFIGS[config]))
    for part in module.modules():
        if isinstance(part, tuple(fast for fast, _ in fast_autoencoder.FAST.values())):
            convolution = next(layer for layer in part.modules() if isinstance(layer, torch.nn.Conv2d))
            x = torch.randn(1, convolution.in_channels, 64, 64).contiguous(memory_format=torch.channels_last)
            before = x.clone()
            part(x)
            assert torch.equal(x, before), type(part).__name__


def test_gradients_go_diffusers_way():
    module = tiny.autoencoder()
    fast = use_fast_autoencoder(copy.deepcopy(module))
    for one in (module, fast):
        x = one.encode(inputs()["encode"]).latent
        one.decode(x).sample.square().mean().backward()
    for (name, one), other in zip(module.named_parameters(), fast.parameters()):
        assert (one.grad - other.grad).abs().max() <= 1e-4 * one.grad.abs().max() + 1e-7, name


def test_twice_is_once():
    module = use_fast_autoencoder(use_fast_autoencoder(tiny.autoencoder()))
    block = module.decoder.up_blocks[0][-1]
    assert type(block).__mro__.count(FastResBlock) == 1
    assert not isinstance(module.decoder.up_blocks[-1][0].attn.processor.replaced, MultiscaleAttention)


HEADS_OF_32 = {f"{half}_block_out_channels": (8, 8, 16, 32, 64, 64) for half in ("encoder", "decoder")}
HEADS_OF_32 |= {"attention_head_dim": 32}
"""As published. With eight channels a query is often orthogonal to all keys but for one value that bfloat16 rounds."""


@pytest.mark.parametrize("config", [{}, SHUFFLES], ids=["sana", "shuffles"])
def test_bfloat16_is_no_farther_from_float32_than_diffusers(config):
    """Root mean square over seeds; 1.1 leaves room for the chance of where rounding falls."""
    errors = torch.zeros(2, 2)
    for seed in range(6):
        half = tiny.autoencoder(seed, **HEADS_OF_32, **config).to(torch.bfloat16)
        exact = copy.deepcopy(half).float()
        given = {name: x.bfloat16() for name, x in inputs(rows=2, columns=3, seed=seed).items()}
        with torch.no_grad():
            for index, (name, pair) in enumerate(zip(given, both(half, given))):
                reference = getattr(exact, name)(given[name].float(), return_dict=False)[0]
                errors[index] += torch.stack([(one.float() - reference).square().mean() for one in pair])
    for theirs, mine in errors.sqrt():
        assert 0 < mine < 1.1 * theirs


@torch.no_grad()
def test_a_block_takes_its_input_output_and_a_strip(monkeypatch):
    """A map of many strips: twice the map, and less than half of it more."""
    sys.path.insert(0, str(tiny.REPOSITORY / "benchmarks"))
    from tracing import traced_peak

    monkeypatch.setattr(fast_autoencoder, "STRIP_ON_DEVICES", 2**14)  # meta stands for a card
    monkeypatch.setattr(fast_autoencoder, "STEP_ON_DEVICES", 2**12)
    block = use_fast_autoencoder(tiny.autoencoder()).decoder.up_blocks[0][-1].to("meta")
    x = torch.empty(1, 8, 256, 128, device="meta").contiguous(memory_format=torch.channels_last)
    assert x.nbytes <= traced_peak(lambda: block(x)) < 1.5 * x.nbytes


def test_hosts_use_it(host):
    vae = drawing.call("SanaLoadVAE", vae_name="tiny")[0]
    module = getattr(vae, "sana_autoencoder", None) or vae.autoencoder
    assert isinstance(module.module.decoder, FastDecoder) and isinstance(module.module.encoder, FastEncoder)
