"""The mathematics of SANA-Sprint against diffusers' scheduler and against itself."""

from __future__ import annotations

import math

import pytest
import torch
from sana_nodes.media.pictures import crop_to_size
from sana_nodes.samplers import noise, trigflow
from sana_nodes.samplers.trigflow import TrigFlow, check_sigmas, parse_timesteps, sample_scm, scm_sigmas


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("first", [1.5708, 1.2])
def test_sigmas_are_the_schedulers(steps, first):
    from diffusers import SCMScheduler

    scheduler = SCMScheduler()
    scheduler.set_timesteps(steps, max_timesteps=first, intermediate_timesteps=1.1 if steps == 2 else None)
    assert torch.allclose(scm_sigmas(steps, first, 1.1), scheduler.timesteps, atol=1e-6)


def test_denoise_begins_between_steps_and_keeps_the_end():
    assert scm_sigmas(2, denoise=1.0).tolist() == pytest.approx([1.5708, 1.3, 0])
    later = scm_sigmas(2, denoise=0.6)
    assert later[0] == pytest.approx(1.5708 + 0.8 * (1.3 - 1.5708)) and later[-1] == 0 and len(later) == 3
    assert scm_sigmas(2, denoise=0.5).tolist() == pytest.approx([1.3, 0])
    assert scm_sigmas(4, denoise=0.75).tolist() == pytest.approx([1.1781, 0.7854, 0.3927, 0], abs=1e-3)
    assert len(scm_sigmas(2, denoise=0.0)) == 0
    starts = [scm_sigmas(2, denoise=d / 20)[0].item() for d in range(1, 21)]
    assert starts == sorted(starts) and len(set(starts)) == 20


def test_timestep_lists():
    assert scm_sigmas(timesteps=[1.5, 0.5]).tolist() == pytest.approx([1.5, 0.5, 0])
    assert scm_sigmas(timesteps=[1.5, 0.5, 0]).tolist() == pytest.approx([1.5, 0.5, 0])
    assert parse_timesteps(" 1.5708, 1.3 ;0 ") == [1.5708, 1.3, 0.0]
    assert parse_timesteps("  ") is None


NAN, INF = float("nan"), float("inf")
REFUSED = [
    ({"steps": 0}, "steps is 0"),
    ({"steps": -3}, "steps is -3"),
    ({"steps": 1001}, "steps is 1001"),
    ({"max_timesteps": NAN}, "max_timesteps is nan"),
    ({"max_timesteps": INF}, "max_timesteps is inf"),
    ({"max_timesteps": 0.0}, "max_timesteps is 0"),
    ({"max_timesteps": 2.0}, "max_timesteps is 2"),
    ({"intermediate_timesteps": NAN}, "intermediate_timesteps is nan"),
    ({"intermediate_timesteps": 1.5708}, "the angles must decrease"),
    ({"denoise": NAN}, "denoise is nan"),
    ({"denoise": 1.5}, "denoise is 1.5"),
    ({"timesteps": [0.5, 1.0, 0]}, "1 follows 0.5"),
    ({"timesteps": [1.0, 1.0, 0]}, "1 follows 1"),
    ({"timesteps": [1.0, NAN, 0]}, "is nan"),
    ({"timesteps": [1000, 500]}, "is 1000"),
    ({"timesteps": [0]}, "no angle above 0"),
]


@pytest.mark.parametrize("given,said", REFUSED)
def test_bad_schedules_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        scm_sigmas(**given)


def test_bad_texts_and_sigmas_are_refused():
    with pytest.raises(ValueError, match="give numbers separated by commas"):
        parse_timesteps("1.5, soon")
    with pytest.raises(ValueError, match="use Sana SCM Sigmas"):
        check_sigmas(torch.tensor([14.6, 7.0, 0.0]))
    with pytest.raises(ValueError, match="must decrease"):
        check_sigmas(torch.tensor([0.5, 1.0, 0.0]))
    with pytest.raises(ValueError, match="not a number"):
        check_sigmas(torch.tensor([1.0, NAN, 0.0]))


def test_denoised_of_a_perfect_network_is_the_picture():
    """A network that answers the true F gives x0 back at any angle, batch by batch."""
    flow, generator = TrigFlow(), torch.Generator().manual_seed(0)
    x0, z = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(2))
    t = torch.tensor([0.3, 1.0, 1.5])
    x = flow.mix(t, z, x0)
    wide = t.view(-1, 1, 1, 1)
    field = torch.cos(wide) * z - torch.sin(wide) * x0
    s = flow.timestep(wide)
    scale = torch.sqrt(s**2 + (1 - s) ** 2)
    output = (field * scale - (1 - 2 * s) * flow.calculate_input(t, x)) / (1 - 2 * s + 2 * s**2)
    assert torch.allclose(flow.calculate_denoised(t, output, x), x0, atol=1e-5)


def test_model_sampling_interface():
    flow = TrigFlow()
    assert flow.sigma_max == pytest.approx(1.5708) and 0 < flow.sigma_min < 0.01 and len(flow.sigmas) == 1000
    angles = torch.tensor([0.1, 0.7, 1.5])
    assert torch.allclose(flow.sigma(flow.timestep(angles)), angles, atol=1e-6)
    assert flow.timestep(torch.tensor(math.pi / 2)) == pytest.approx(1.0)
    assert flow.percent_to_sigma(0.0) > 1.6 and flow.percent_to_sigma(1.0) == 0
    assert flow.percent_to_sigma(0.5) == pytest.approx(0.7854)
    noise_, latent = torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0)
    assert torch.equal(flow.noise_scaling(torch.tensor(1.0), noise_, torch.zeros_like(latent)), noise_)
    mixed = flow.noise_scaling(torch.tensor(1.0), noise_, latent)
    assert torch.allclose(mixed, torch.full_like(latent, math.cos(1) * 3 + math.sin(1)))
    kept = flow.inverse_noise_scaling(torch.tensor(1.0), mixed)
    assert torch.allclose(flow.noise_scaling(torch.tensor(1.0), torch.zeros_like(kept), kept), mixed, atol=1e-6)


def test_sampler_calls_back_and_draws_noise_between_steps_alone():
    seen, drawn = [], []

    def model(x, sigma, **_):
        return x * 0.5

    def noise_sampler(sigma, sigma_next):
        drawn.append((sigma.item(), sigma_next.item()))
        return torch.zeros(1, 1, 2, 2)

    x = torch.ones(1, 1, 2, 2)
    out = sample_scm(model, x, torch.tensor([1.5, 1.0, 0.0]), None, seen.append, noise_sampler=noise_sampler)
    assert [state["i"] for state in seen] == [0, 1]
    assert drawn == [(1.5, 1.0)]
    assert torch.allclose(out, x * 0.25 * math.cos(1.0))


def test_noise_goes_on_in_one_generator():
    generator = torch.Generator("cpu").manual_seed(7)
    expected = [torch.randn(2, 32, 2, 2, generator=generator) for _ in range(3)]
    mine = noise.seeded_generator(7)
    assert torch.equal(noise.draw(mine, (2, 32, 2, 2)), expected[0])
    following = noise.continued_noise(mine, (2, 32, 2, 2))
    sigma = torch.tensor(1.0)
    assert torch.equal(following(sigma, sigma), expected[1])
    assert torch.equal(noise.noise_after_start(7, (2, 32, 2, 2))(sigma, sigma), expected[1])


def test_sampler_without_a_noise_sampler_follows_the_seed():
    def model(x, sigma, seed):
        return torch.zeros_like(x)

    sigmas = torch.tensor([1.5, 1.0])
    out = sample_scm(model, torch.zeros(1, 4, 2, 2), sigmas, {"seed": 7})
    generator = torch.Generator("cpu").manual_seed(7)
    torch.randn(1, 4, 2, 2, generator=generator)
    assert torch.allclose(out, torch.sin(sigmas[1]) * torch.randn(1, 4, 2, 2, generator=generator))


@pytest.mark.parametrize("size", [(1000, 1000), (997, 513), (64, 48), (1024, 768)])
def test_crop_to_size_is_diffusers_with_exact_sizes(size):
    from diffusers.image_processor import PixArtImageProcessor

    images = torch.rand(2, 100, 80, 3)
    mine = crop_to_size(images, *size)
    assert mine.shape == (2, size[1], size[0], 3)
    theirs = PixArtImageProcessor.resize_and_crop_tensor(images.movedim(-1, 1), *size).movedim(1, -1)
    if theirs.shape == mine.shape:
        assert torch.allclose(mine, theirs, atol=1e-6)
    with pytest.raises(ValueError, match="0 x 5"):
        crop_to_size(images, 0, 5)


def test_max_angle_is_diffusers_first():
    import inspect

    from diffusers import SanaSprintPipeline

    call = inspect.signature(SanaSprintPipeline.__call__).parameters
    assert call["max_timesteps"].default == trigflow.MAX_ANGLE
    assert call["intermediate_timesteps"].default == 1.3


@pytest.mark.parametrize("angle", [5e-324, 1e-300, 0.0, -1.0, float("nan")])
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_an_angle_that_makes_no_schedule_is_an_error(angle, denoise):
    with pytest.raises(ValueError, match="give an angle above 0"):
        scm_sigmas(1, angle, 1.3, denoise)
