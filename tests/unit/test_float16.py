"""SANA 1.0, which was trained in float16: its attention is clipped to float16's range, and no other family's is."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.networks.fast_transformer import FLOAT16, use_fast_transformer
from sana_nodes.networks.perturbed import Perturbation, attention_of

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def attention(clips: bool, dtype: torch.dtype, large: bool = True, perturbation=None) -> torch.Tensor:
    """What self-attention gives, whose last layer is so large that float16 overflows."""
    network = use_fast_transformer(copy.deepcopy(tiny.image_transformer()).to(dtype), clips)
    layer = network.transformer_blocks[0].attn1
    if large:
        layer.to_out[0].weight.data *= 3e4
    with torch.no_grad(), attention_of(network, perturbation):
        return layer(torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)).to(dtype) * 100)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_attention_is_clipped_in_every_dtype(dtype):
    out = attention(True, dtype)
    assert torch.isfinite(out).all() and out.abs().max() == torch.tensor(FLOAT16).to(dtype)
    if dtype != F16:
        assert attention(False, dtype).abs().max() > 2 * FLOAT16, "without it nothing would be clipped"


def test_float16_is_always_clipped_as_in_diffusers():
    assert torch.equal(attention(False, F16), attention(True, F16))


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_perturbed_attention_is_clipped_too(dtype):
    perturbation = Perturbation(3.0, (0,), identity=True)
    assert attention(True, dtype, perturbation=perturbation).abs().max() == FLOAT16
    if dtype == F32:
        assert attention(False, dtype, perturbation=perturbation).abs().max() > FLOAT16


def test_smaller_values_are_left_alone():
    assert torch.equal(attention(True, F32, large=False), attention(False, F32, large=False))


MADE = {
    "sana": tiny.image_transformer,
    "sana 1.5": lambda: tiny.image_transformer(qk_norm="rms_norm_across_heads"),
    "sprint": tiny.transformer,
    "video": tiny.video_transformer,
}


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", MADE)
def test_which_files_are_clipped(tmp_path, name, dtype):
    MADE[name]().to(dtype).save_pretrained(tmp_path)
    loaded = load_transformer(tmp_path)
    assert loaded.spec.float16 is (name == "sana")
    assert loaded.spec.clips is (name == "sana" and dtype == F16)


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_a_controlnet_is_clipped_as_its_model(tmp_path, dtype):
    tiny.controlnet().to(dtype).save_pretrained(tmp_path)
    assert load_controlnet(tmp_path).spec.clips is (dtype == F16)


@pytest.mark.parametrize("name", ["sana", "sprint"])
def test_the_embedded_host_clips_what_it_loads(tmp_path, name):
    from sana_nodes.host.embedded import runtime

    MADE[name]().to(F16).save_pretrained(tmp_path)
    model = runtime.build_model(load_transformer(tmp_path), "default")
    assert model.module.transformer_blocks[1].attn1.processor.clips is (name == "sana")
    assert model.dtype == F32, "float16 is not computed in without ComfyUI"


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
def test_another_dtype_than_that_of_the_tables(name, dtype):
    """ComfyUI's ModelComputeDtype casts layers and latents; tables and norms keep the dtype of the file."""
    from sana_nodes.host.embedded.devices import CASTING
    from sana_nodes.networks import precision

    made = MADE[name]().requires_grad_(False)
    stored = BF16 if dtype != BF16 else F32
    network = use_fast_transformer(precision.use_casting_layers(copy.deepcopy(made), CASTING, stored, stored))
    x = torch.randn(1, *((16, 2, 4, 4) if name == "video" else (32, 4, 4)))
    given = {"encoder_hidden_states": torch.randn(1, 5, 48), "timestep": torch.tensor([0.5]), "return_dict": False}
    given |= {"guidance": torch.tensor([0.45])} if name == "sprint" else {}
    with torch.no_grad():
        out = network(x.to(dtype), **{**given, "encoder_hidden_states": given["encoder_hidden_states"].to(dtype)})[0]
        expected = made(x, **given)[0]
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()
