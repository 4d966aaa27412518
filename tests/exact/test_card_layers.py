"""Transformers as a card runs them, in few launches, against diffusers' own forward; here with the CPU as the card."""

from __future__ import annotations

import copy
import threading

import pytest
import tiny
import torch
from network_calls import image_inputs, video_inputs
from sana_nodes.networks import card_layers, fast_layers
from sana_nodes.networks.fast_times import embedded_times
from sana_nodes.networks.fast_transformer import use_fast_transformer

NORM = "rms_norm_across_heads"


@pytest.fixture(autouse=True)
def a_card(monkeypatch):
    monkeypatch.setattr(card_layers, "CARDS", {"cpu", "meta"})


def makes(kind: str, **changes):
    """A network of a kind, and a call's inputs."""
    if kind == "image":
        network = tiny.transformer(**changes)
        return network, image_inputs(network, batch=2, lengths=(3, 9), masked=True)
    network = tiny.video_transformer(**changes)
    return network, video_inputs(network, batch=2, lengths=(3, 9), masked=True)


def error(network, given: dict, fast, **more) -> float:
    with torch.no_grad():
        theirs = network(**given)[0]
        return ((fast(**given, **more)[0] - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("norm", [NORM, None], ids=["norm", "no norm"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_it_is_diffusers_answer(monkeypatch, kind, norm, joined):
    """In memory that blocks share, whole, and a few tokens at a time; with the weights of one product, and of three."""
    network, given = makes(kind, qk_norm=norm)
    fast = use_fast_transformer(copy.deepcopy(network))
    if joined:
        count, of = card_layers.join_projections(fast)
        assert count == of == len(fast.transformer_blocks)
    for shared, step in ((2048, 16384), (0, 16384), (0, 8)):
        monkeypatch.setattr(card_layers, "SHARED_TOKENS", shared)
        monkeypatch.setattr(fast_layers, "TOKENS_ON_DEVICES", step)
        assert error(network, given, fast) < 1e-5


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("norm", [NORM, None], ids=["norm", "no norm"])
def test_a_query_without_positive_values_attends_to_nothing(norm, joined):
    """As in diffusers, where EPS makes 0 of 0 / 0; the second call finds constants in memory of the first."""
    network, given = makes("image", qk_norm=norm)
    attention = network.transformer_blocks[0].attn1
    attention.to_q.weight.data[:32].zero_()  # the first head's
    fast = use_fast_transformer(copy.deepcopy(network))
    if joined:
        card_layers.join_projections(fast)
    x = torch.randn(2, 9, 64)
    with torch.no_grad(), card_layers.shared_memory(18):
        for _ in range(2):
            mine, theirs = fast.transformer_blocks[0].attn1(x), attention(x)
            assert (mine - theirs).abs().max() < 1e-5
        assert len(card_layers._of_thread.memories) == 1
    assert card_layers._of_thread.memories is None
    assert error(network, given, fast) < 1e-5


def test_calls_of_two_cards_share_no_memory():
    """ComfyUI computes on each card in a thread."""
    seen = []
    with card_layers.shared_memory(4):
        thread = threading.Thread(target=lambda: seen.append(card_layers._of_thread.memories))
        thread.start()
        thread.join()
    assert seen == [None]


def test_what_is_kept_of_times_is_diffusers_embedding():
    """Also of a guidance that a run has once, for two samples."""
    network = tiny.transformer()
    embed, time, kept = network.time_embed, torch.tensor([0.3, 0.9]), {}
    for step in range(2):
        guidance = torch.tensor([0.45])
        theirs = embed(time / (step + 1), guidance=guidance, hidden_dtype=torch.float32)
        mine = embedded_times(embed, time / (step + 1), guidance, 2, torch.float32, kept)
        assert all((a - b).abs().max() < 1e-6 for a, b in zip(mine, theirs))
    assert set(kept) == {"guidance", ("speeds", 128, 0)}
    embed = tiny.video_transformer().time_embed
    theirs = embed(time * 1000, batch_size=2, hidden_dtype=torch.float32)
    mine = embedded_times(embed, time * 1000, None, 2, torch.float32, kept)
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(mine, theirs))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_bfloat16_is_no_farther_from_float32_than_diffusers(kind):
    """Root mean square over seeds, as on a processor."""
    errors = torch.zeros(2)
    for seed in range(12):
        make = tiny.transformer if kind == "image" else tiny.video_transformer
        half, exact = make(seed).to(torch.bfloat16), make(seed)
        exact.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        given = image_inputs(exact, seed=seed, sides=(20, 20)) if kind == "image" else video_inputs(exact, seed=seed)
        given = {k: v.bfloat16().float() if torch.is_tensor(v) and k != "timestep" else v for k, v in given.items()}
        with torch.no_grad():
            reference = exact(**given)[0]
            given = {k: v.bfloat16() if torch.is_tensor(v) and k != "timestep" else v for k, v in given.items()}
            for number, one in enumerate((half, use_fast_transformer(copy.deepcopy(half)))):
                errors[number] += (one(**given)[0].float() - reference).square().mean()
    theirs, mine = errors.sqrt()
    assert 0 < mine < 1.1 * theirs


@pytest.mark.parametrize("on_card", [True, False], ids=["card", "processor"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_what_is_kept_of_a_prompt_gives_the_same_steps(monkeypatch, kind, on_card):
    if not on_card:
        monkeypatch.setattr(card_layers, "CARDS", set())
    network, given = makes(kind)
    fast, kept = use_fast_transformer(copy.deepcopy(network)), {}
    read = []
    for block in fast.transformer_blocks:
        block.attn2.to_k.register_forward_hook(lambda *_: read.append(1))
    for step in range(3):
        given["hidden_states"] = given["hidden_states"] + step
        assert error(network, given, fast, kept=kept) < 1e-5
    assert len(read) == len(fast.transformer_blocks), "keys are computed in the first step alone"


def test_a_weight_that_is_replaced_ends_the_one_product_of_its_layer():
    network, given = makes("image")
    fast = use_fast_transformer(copy.deepcopy(network))
    card_layers.join_projections(fast)
    for one in (network, fast):
        layer = one.transformer_blocks[0].attn1.to_k
        layer.weight = torch.nn.Parameter(layer.weight.detach() * 1.5, requires_grad=False)
    layers = [(b.attn1.to_q, b.attn1.to_k, b.attn1.to_v) for b in fast.transformer_blocks]
    x = given["hidden_states"]
    assert [card_layers.joined_weight(one, x) is None for one in layers] == [True, False, False]
    assert error(network, given, fast) < 1e-5


def test_weights_that_are_changed_in_place_act():
    network, given = makes("image")
    fast = use_fast_transformer(copy.deepcopy(network))
    card_layers.join_projections(fast)
    for one in (network, fast):
        with torch.no_grad():
            one.transformer_blocks[1].attn1.to_v.weight.mul_(2.0)
    assert error(network, given, fast) < 1e-5


def test_only_plain_layers_are_joined():
    network = tiny.transformer()
    network.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda *_: None)
    network.transformer_blocks[1].attn1.to_k.comfy_cast_weights = True
    assert card_layers.join_projections(network) == (1, 3)
    assert card_layers.join_projections(tiny.transformer(attention_bias=True)) == (0, 3)
    assert card_layers.join_projections(tiny.transformer().to(torch.float8_e4m3fn)) == (0, 3)


def test_joined_weights_are_saved_and_copied_one_by_one(tmp_path):
    from safetensors.torch import load_file, save_file

    network = tiny.transformer()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    card_layers.join_projections(network)
    save_file(network.state_dict(), tmp_path / "joined.safetensors")
    for made in (load_file(tmp_path / "joined.safetensors"), copy.deepcopy(network).state_dict()):
        assert all(torch.equal(made[name], value) for name, value in before.items())
    assert copy.deepcopy(network).transformer_blocks[0].attn1.to_k.weight.untyped_storage().nbytes() == 64 * 64 * 4


def test_the_time_of_a_frame_is_that_of_its_tokens():
    """Image to video: each frame's time once gives what diffusers gives for each token's."""
    network, given = makes("video")
    frames = given["hidden_states"].shape[2]
    times = torch.rand(2, 1, frames, 1, 1) * 1000
    times[:, :, 0] = 0
    patch = network.config.patch_size
    sides = [side // p for side, p in zip(given["hidden_states"].shape[3:], patch[1:])]
    fast = use_fast_transformer(copy.deepcopy(network))
    with torch.no_grad():
        theirs = network(**{**given, "timestep": times.expand(2, 1, frames, *sides)})[0]
        for each in (times, times.expand(2, 1, frames, *sides)):
            mine = fast(**{**given, "timestep": each})[0]
            assert (mine - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())


def test_one_time_for_all_samples():
    network, given = makes("image")
    fast = use_fast_transformer(copy.deepcopy(network))
    given["timestep"], given["guidance"] = torch.full((2,), 0.4), torch.full((2,), 0.45)
    with torch.no_grad():
        theirs = network(**given)[0]
        mine = fast(**{**given, "timestep": torch.tensor([0.4]), "guidance": torch.tensor([0.45])})[0]
    assert (mine - theirs).abs().max() < 1e-5


def test_gemmas_norms():
    from sana_nodes.networks.text_encoder import use_fast_text_encoder

    theirs = tiny.text_encoder().requires_grad_(False)
    mine, ids = use_fast_text_encoder(copy.deepcopy(theirs)), torch.randint(800, (1, 12))
    with torch.no_grad():
        assert (mine(ids)[0] - theirs(ids)[0]).abs().max() < 1e-5
        half = use_fast_text_encoder(copy.deepcopy(theirs).bfloat16())
        x = torch.randn(2, 5, 48).bfloat16()
        norms = zip(half.modules(), copy.deepcopy(theirs).bfloat16().modules())
        pairs = [(a(x), b(x)) for a, b in norms if type(a).__name__ == "Gemma2RMSNorm"]
        assert len(pairs) == 13 and all((a - b).abs().max() < 0.05 for a, b in pairs)
    x = torch.randn(1, 3, 48, requires_grad=True)
    mine.norm(x).sum().backward()
    assert x.grad is not None
