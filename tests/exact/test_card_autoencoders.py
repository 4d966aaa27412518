"""Autoencoders as a card runs them, in few launches, against diffusers' own forward; here with the CPU as the card."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from sana_nodes.networks import card_layers, fast_autoencoder, streaming
from sana_nodes.networks.autoencoder import use_fast_autoencoder
from sana_nodes.networks.latent_spaces import LTX2, WAN, VaeSpec


@pytest.fixture(autouse=True)
def a_card(monkeypatch):
    monkeypatch.setattr(card_layers, "CARDS", {"cpu", "meta"})


def pair(module, dtype=torch.float32):
    """diffusers' module and ours."""
    module = module.requires_grad_(False).to(dtype)
    fast = use_fast_autoencoder(copy.deepcopy(module))
    card_layers.join_projections(fast)
    return module, fast


def apart(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    assert mine.shape == theirs.shape
    return ((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("small", [False, True], ids=["whole", "in strips and steps"])
@pytest.mark.parametrize("changes", [{}, tiny.LITE], ids=["DC-AE", "DC-AE-Lite"])
def test_images(monkeypatch, changes, small):
    if small:
        monkeypatch.setattr(fast_autoencoder, "STRIP_ON_DEVICES", 1)
        monkeypatch.setattr(fast_autoencoder, "STEP_ON_DEVICES", 1)
    theirs, mine = pair(tiny.autoencoder(**changes))
    latent, pixels = torch.randn(2, 32, 3, 5), torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        assert apart(mine.decode(latent)[0], theirs.decode(latent)[0]) < 1e-5
        assert apart(mine.encode(pixels)[0], theirs.encode(pixels)[0]) < 1e-5


@pytest.mark.parametrize(("make", "space"), [(tiny.wan_vae, WAN), (tiny.ltx2_vae, LTX2)], ids=["Wan", "LTX-2"])
def test_videos(make, space):
    theirs, mine = pair(make())
    spec = VaeSpec(space, *((16, 8, 4) if space is WAN else (128, 32, 8)))
    latent = torch.randn(1, spec.latent_channels, 3, 4, 4)
    with torch.no_grad():
        whole = theirs.decode(latent)[0]
        pieces = list(streaming.decode_pieces(mine, spec, latent, "cpu", torch.float32))
        assert apart(torch.cat(pieces, dim=2), whole) < 1e-5
        if space is WAN:
            pixels = torch.rand(1, 5, 32, 32, 3)
            latents = streaming.encode_pieces(mine, spec, pixels, "cpu", torch.float32)
            assert apart(latents, theirs.encode(pixels.movedim(-1, 1) * 2 - 1)[0].mode()) < 1e-5


def test_bfloat16_is_no_farther_from_float32_than_diffusers():
    errors = torch.zeros(2)
    for seed in range(16):
        theirs, mine = pair(tiny.autoencoder(seed), torch.bfloat16)
        exact = tiny.autoencoder(seed)
        exact.load_state_dict({name: value.float() for name, value in theirs.state_dict().items()})
        latent = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(seed)).bfloat16()
        with torch.no_grad():
            reference = exact.decode(latent.float())[0]
            for number, one in enumerate((theirs, mine)):
                errors[number] += (one.decode(latent)[0].float() - reference).square().mean()
    diffusers, ours = errors.sqrt()
    assert 0 < ours < 1.1 * diffusers


def test_queries_keys_and_values_of_dc_ae_are_one_product():
    _, mine = pair(tiny.autoencoder())
    found = [m for m in mine.modules() if hasattr(m, "to_qkv_multiscale")]
    assert found and all(card_layers.joined_weight((m.to_q, m.to_k, m.to_v), torch.ones(1)) is not None for m in found)
