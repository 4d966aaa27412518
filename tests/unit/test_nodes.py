"""Nodes called with what a person can wire wrongly, on both hosts."""

from __future__ import annotations

import math

import drawing
import pytest
import torch
from sana_nodes.samplers import noise


@pytest.fixture
def parts(host):
    return drawing.call("SanaLoadPipeline", pipeline="tiny")


def sample(parts, **given):
    positive = drawing.call("SanaEncodePrompt", clip=parts[1], text="a red ring")[0]
    given.setdefault("latent_image", drawing.call("SanaEmptyLatent", width=64, height=64)[0])
    return drawing.call("SanaSCMSample", model=parts[0], positive=positive, **given)[0]["samples"]


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 16, 1, 8, 8), (1, 31, 2, 2)])
def test_latents_of_other_models_are_refused(parts, shape):
    with pytest.raises(ValueError, match=r"SANA-Sprint takes \[batch, 32, height, width\]"):
        sample(parts, latent_image={"samples": torch.zeros(shape)})


@pytest.mark.parametrize("given", [{"steps": 0}, {"max_timesteps": float("nan")}, {"denoise": -0.5}])
def test_bad_numbers_are_refused_before_any_work(parts, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        sample(parts, **given)


def test_sigmas_of_other_models_are_refused(parts):
    with pytest.raises(ValueError, match="use Sana SCM Sigmas"):
        sample(parts, sigmas=torch.tensor([14.6, 3.0, 0.0]))


def test_denoise_keeps_more_of_the_latent_the_lower_it_is(parts):
    latent = {"samples": torch.randn(1, 32, 2, 2, generator=torch.Generator().manual_seed(0)), "kept": "along"}
    assert torch.equal(sample(parts, latent_image=latent, denoise=0.0), latent["samples"])
    positive = drawing.call("SanaEncodePrompt", clip=parts[1], text="x")[0]
    out = drawing.call("SanaSCMSample", model=parts[0], positive=positive, latent_image=latent, denoise=0.3)[0]
    assert out["kept"] == "along" and drawing.difference(out["samples"], latent["samples"]) > 1e-3
    far = [(sample(parts, latent_image=latent, denoise=d) - latent["samples"]).norm() for d in (0.01, 0.99)]
    assert far[0] < far[1]


def test_split_run_is_the_whole_run(parts):
    """SplitSigmas' two halves, the second without noise of its own, give the picture of one run."""
    whole = sample(parts, sigmas=torch.tensor([1.5708, 1.3, 0.0]), seed=4)
    half = sample(parts, sigmas=torch.tensor([1.5708, 1.3]), seed=4)
    rest = sample(parts, sigmas=torch.tensor([1.3, 0.0]), seed=4, latent_image={"samples": half}, add_noise="disable")
    assert torch.allclose(rest, whole, atol=1e-4)


def test_add_noise_disabled_throws_the_first_draw_away(parts):
    """A latent noised by hand with the seed's first draw gives the run that noises by itself."""
    start = noise.draw(noise.seeded_generator(9), (1, 32, 2, 2))
    noised = {"samples": start / math.cos(1.4)}  # what noise_scaling without noise turns into the draw
    by_hand = sample(parts, latent_image=noised, add_noise="disable", seed=9, max_timesteps=1.4)
    assert torch.allclose(by_hand, sample(parts, seed=9, max_timesteps=1.4), atol=1e-4)


@pytest.mark.parametrize("width,height,said", [(100, 64, "96 and 128"), (64, 31, "32 and 64"), (0, 64, "32 and 64")])
def test_sizes_between_multiples_are_refused(host, width, height, said):
    with pytest.raises(ValueError, match=said):
        drawing.call("SanaEmptyLatent", width=width, height=height)


def test_empty_latent(host):
    assert drawing.call("SanaEmptyLatent", width=96, height=64, batch_size=2)[0]["samples"].shape == (2, 32, 2, 3)
    with pytest.raises(ValueError, match="batch_size is 0"):
        drawing.call("SanaEmptyLatent", batch_size=0)


@pytest.mark.parametrize(
    "node,name,what",
    [
        ("SanaLoadPipeline", "pipeline", "pipeline folder"),
        ("SanaLoadTransformer", "model_name", "transformer"),
        ("SanaLoadTextEncoder", "encoder_name", "text encoder"),
        ("SanaLoadVAE", "vae_name", "VAE"),
    ],
)
def test_missing_files_say_where_was_looked(host, reference, home, node, name, what):
    from sana_nodes import NODE_CLASS_MAPPINGS

    with pytest.raises(FileNotFoundError, match=f"no {what} called 'absent'; looked in .*models"):
        drawing.call(node, **{name: "absent"})
    assert "looked in" in NODE_CLASS_MAPPINGS[node].VALIDATE_INPUTS("absent")
    assert NODE_CLASS_MAPPINGS[node].VALIDATE_INPUTS("tiny") is True
    assert "tiny" in NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"][name][0]


STORED = {
    "default": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def test_weight_dtypes_of_a_vae_and_an_encoder_leave_float16_out(host, reference):
    for node, name in (("SanaLoadVAE", "vae_name"), ("SanaLoadTextEncoder", "encoder_name")):
        with pytest.raises(ValueError, match="choose one of default, bf16, fp32"):
            drawing.call(node, **{name: "tiny", "weight_dtype": "fp16"})


@pytest.mark.parametrize("dtype", STORED)
def test_weight_dtypes(host, reference, dtype):
    """Stored as asked for; a pipeline's other parts take what they allow, and float16 is none of it."""
    exact = drawing.ours(drawing.call("SanaLoadPipeline", pipeline="tiny"), "a red ring")
    for node, name in (("SanaLoadPipeline", "pipeline"), ("SanaLoadTransformer", "model_name")):
        loaded = drawing.call(node, **{name: "tiny", "weight_dtype": dtype})
        network = loaded[0].model.diffusion_model if host.name == "comfyui" else loaded[0].module
        layer = network.transformer_blocks[0].attn1.to_q
        assert layer.weight.dtype == STORED[dtype]
        parts = loaded if len(loaded) > 1 else (*loaded, *drawing.call("SanaLoadPipeline", pipeline="tiny")[1:])
        apart = drawing.difference(image := drawing.ours(parts, "a red ring"), exact)
        assert apart < 0.5 and (image - exact).abs().mean() < 0.05
        assert apart < drawing.ROUNDING if STORED[dtype] == torch.float32 else apart > 10 * drawing.ROUNDING
