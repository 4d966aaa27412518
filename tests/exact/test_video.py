"""The decoded frames are diffusers' own, on both hosts: largest difference, float32, same weights and seed."""

from __future__ import annotations

import drawing
import filming
import pytest
import torch

LIMIT = 1e-4
WAN, LTX2 = "tiny-video", "tiny-video-ltx2"
LONG = "jerky movements and ghosting and a green square, " * 60


@pytest.fixture
def parts(host, video_references):
    loaded = {}

    def of(name):
        if name not in loaded:
            loaded[name] = drawing.call("SanaLoadPipeline", pipeline=name)
        return loaded[name]

    return of


def difference(parts, references, name, solver="dpm_solver++", image=None, **settings) -> float:
    mine = filming.ours(parts(name), solver=solver, image=image, **settings)
    theirs = filming.theirs(references[name], solver=solver, image=image, **settings)
    assert mine.shape == theirs.shape
    return drawing.difference(mine, theirs)


@pytest.mark.parametrize("name", [WAN, LTX2])
@pytest.mark.parametrize("solver", ["dpm_solver++", "euler"])
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_frames_and_solvers(parts, video_references, name, solver, frames):
    assert difference(parts, video_references, name, solver, frames=frames, seed=frames) < LIMIT


@pytest.mark.parametrize("name", [WAN, LTX2])
@pytest.mark.parametrize("solver", ["dpm_solver++", "euler"])
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_from_a_picture(parts, video_references, name, solver, frames):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(frames))
    assert difference(parts, video_references, name, solver, image, frames=frames, seed=frames) < LIMIT


@pytest.mark.parametrize("cfg", [1.0, 6.0])
@pytest.mark.parametrize("negative", ["", LONG], ids=["empty", "long"])
def test_guidance_and_negative_prompts(parts, video_references, cfg, negative):
    assert difference(parts, video_references, WAN, cfg=cfg, negative=negative) < LIMIT


@pytest.mark.parametrize("sigmas", [[1.0, 0.6, 0.2], [0.9, 0.5], [0.7]], ids=str)
@pytest.mark.parametrize("image", [None, torch.rand(1, 64, 64, 3)], ids=["text", "picture"])
def test_custom_sigmas(parts, video_references, sigmas, image):
    assert difference(parts, video_references, WAN, "euler", image, sigmas=sigmas) < LIMIT


@pytest.mark.parametrize("name", [WAN, LTX2])
@pytest.mark.parametrize("image", [None, torch.rand(1, 64, 64, 3)], ids=["text", "picture"])
def test_batch_of_two(parts, video_references, name, image):
    assert difference(parts, video_references, name, image=image, batch=2, seed=9) < LIMIT


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
@pytest.mark.parametrize("solver", ["dpm_solver++", "euler"])
def test_steps(parts, video_references, solver, steps):
    assert difference(parts, video_references, WAN, solver, steps=steps, shift=3.0) < LIMIT


@pytest.mark.parametrize("width,height", [(96, 64), (64, 128)])
def test_sizes(parts, video_references, width, height):
    assert difference(parts, video_references, WAN, width=width, height=height) < LIMIT


def test_a_picture_of_another_size_is_resized_as_diffusers_does(parts, video_references):
    image = torch.rand(1, 100, 100, 3).mul(255).round().div(255)
    assert difference(parts, video_references, WAN, image=image) < LIMIT


@pytest.mark.parametrize("solver", ["dpm_solver++", "euler"])
def test_the_first_latent_frame_stays_the_picture(parts, host, solver):
    image = torch.rand(1, 64, 64, 3)
    latent = filming.latent(parts(WAN)[2], image, frames=9)
    drawn = filming.sampled(parts(WAN), latent, solver=solver)
    assert (drawn["samples"][:, :, 0] - latent["samples"][:, :, 0]).abs().max() < 1e-5
    assert (drawn["samples"][:, :, 1:] - latent["samples"][:, :, 1:]).abs().max() > 0.1


def test_prompts_seeds_and_motion_matter(parts):
    first = filming.ours(parts(WAN), seed=1)
    assert (first - filming.ours(parts(WAN), seed=2)).abs().max() > 1e-2
    assert (first - filming.ours(parts(WAN), seed=1, prompt="a blue cross")).abs().max() > 1e-4
    assert (first - filming.ours(parts(WAN), seed=1, motion=5)).abs().max() > 1e-5


def test_parts_loaded_one_by_one(host, video_references, home):
    models = home / "models"
    for kind, part in (("diffusion_models", "transformer"), ("vae", "vae"), ("text_encoders", "text_encoder")):
        link = models / kind / "tiny-video"
        if not link.exists():
            link.symlink_to(models / "diffusers" / "tiny-video" / part, target_is_directory=True)
    model = drawing.call("SanaLoadTransformer", model_name="tiny-video")[0]
    clip = drawing.call("SanaLoadTextEncoder", encoder_name="tiny-video")[0]
    vae = drawing.call("SanaLoadVAE", vae_name="tiny-video")[0]
    assert difference(lambda name: (model, clip, vae), video_references, WAN) < LIMIT
