"""Images of every other kind are diffusers' own too, on both hosts: SANA, image to image, ControlNet."""

from __future__ import annotations

import inspect
import itertools

import controlling
import drawing
import pytest
import tiny
import torch
from controlling import PROMPT
from sana_nodes.samplers import trigflow

LIMIT = 1e-4
NEGATIVE = "a green square"


@pytest.fixture
def sana(host, sana_reference):
    return drawing.call("SanaLoadPipeline", pipeline="tiny-sana")


@pytest.fixture
def sprint(host, reference):
    return drawing.call("SanaLoadPipeline", pipeline="tiny")


@pytest.mark.parametrize("solver", ["dpm_solver++", "euler"])
@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("cfg", [1.0, 4.5])
@pytest.mark.parametrize("negative", ["", NEGATIVE], ids=["no negative", "negative"])
def test_sana(sana, sana_reference, solver, steps, cfg, negative):
    mine = drawing.flow(sana, PROMPT, negative, steps=steps, cfg=cfg, solver=solver, seed=steps)
    expected = controlling.theirs(
        sana_reference, solver, negative=negative, num_inference_steps=steps, guidance_scale=cfg, seed=steps
    )
    assert drawing.difference(mine, expected) < LIMIT


@pytest.mark.parametrize("width,height,batch,shift", [(96, 32, 1, 0.0), (64, 128, 3, 0.0), (64, 64, 2, 6.0)])
def test_sana_sizes_batches_and_shift(sana, sana_reference, width, height, batch, shift):
    size = {"width": width, "height": height, "batch": batch}
    mine = drawing.flow(sana, PROMPT, NEGATIVE, **size, shift=shift)
    assert (
        drawing.difference(mine, controlling.theirs(sana_reference, shift=shift or 3.0, negative=NEGATIVE, **size))
        < LIMIT
    )


def test_guidance_and_negative_prompt_matter(sana):
    plain = drawing.flow(sana, PROMPT)
    assert (plain - drawing.flow(sana, PROMPT, NEGATIVE)).abs().max() > 1e-3
    assert (plain - drawing.flow(sana, PROMPT, cfg=1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"timestep_scale": 0.001}, {"out_channels": 64}], ids=str)
def test_times_and_learned_variance_of_other_transformers(host, sana_reference, home, changes):
    """A transformer that counts its times from 0 to 1, and one that also says a variance, which is not used."""
    name = "tiny-" + next(iter(changes))
    network = tiny.image_transformer(**changes)
    network.save_pretrained(home / "models" / "diffusion_models" / name)
    _, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    parts = drawing.call("SanaLoadTransformer", model_name=name)[0], clip, vae
    kept, sana_reference.transformer = sana_reference.transformer, network
    try:
        assert drawing.difference(drawing.flow(parts, PROMPT), controlling.theirs(sana_reference)) < LIMIT
    finally:
        sana_reference.transformer = kept


def by_img2img(pipeline, image, strength, steps, seed=0, batch=1, **given):
    from diffusers import SanaSprintImg2ImgPipeline

    maker = SanaSprintImg2ImgPipeline(**pipeline.components)
    maker.set_progress_bar_config(disable=True)
    given.setdefault("intermediate_timesteps", 1.3 if steps == 2 else None)
    return maker(
        PROMPT,
        image=image.movedim(-1, 1) * 2 - 1,
        strength=strength,
        num_inference_steps=steps,
        width=image.shape[2],
        height=image.shape[1],
        num_images_per_prompt=batch,
        generator=torch.Generator("cpu").manual_seed(seed),
        use_resolution_binning=False,
        output_type="pt",
        **given,
    ).images.movedim(1, -1)


def img2img(parts, host, image, strength, steps, seed=0, start="schedule", **angles):
    """SanaImg2ImgLatent into SanaSCMSample that adds no noise."""
    model, clip, vae = parts
    encoded = drawing.core("VAEEncode", host, pixels=image, vae=vae)[0]
    chosen = {"seed": seed, "strength": strength, "steps": steps, "start": start, **angles}
    latent, sigmas = drawing.call("SanaImg2ImgLatent", samples=encoded, **chosen)
    positive = drawing.call("SanaEncodePrompt", clip=clip, text=PROMPT)[0]
    asked = {"model": model, "positive": positive, "latent_image": latent, "sigmas": sigmas, "seed": seed}
    return drawing.decode(vae, drawing.call("SanaSCMSample", **asked, add_noise="disable")[0])


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("strength", [0.25, 0.5, 0.6, 0.75, 1.0])
def test_image_to_image(sprint, host, reference, steps, strength):
    image = controlling.image(96, 64, seed=steps)
    mine = img2img(sprint, host, image, strength, steps, seed=7)
    assert drawing.difference(mine, by_img2img(reference, image, strength, steps, seed=7)) < LIMIT


@pytest.mark.parametrize(
    "angles",
    [{"max_timesteps": 1.2, "intermediate_timesteps": 0.8}, {"max_timesteps": 1.4, "intermediate_timesteps": 0.6}],
)
def test_image_to_image_from_other_angles(sprint, host, reference, angles):
    image = controlling.image()
    for strength in (1.0, 0.5):
        mine = img2img(sprint, host, image, strength, 2, **angles)
        assert drawing.difference(mine, by_img2img(reference, image, strength, 2, **angles)) < LIMIT


def test_image_to_image_with_a_batch(sprint, host, reference):
    image = controlling.image().expand(3, -1, -1, -1)
    mine = img2img(sprint, host, image, 0.5, 2, seed=3)
    assert drawing.difference(mine, by_img2img(reference, image[:1], 0.5, 2, seed=3, batch=3)) < LIMIT


def test_image_to_image_in_one_node_is_the_same(sprint, host):
    """denoise of SanaSCMSample begins where SanaImg2ImgLatent's continuous start does."""
    model, clip, vae = sprint
    image = controlling.image()
    encoded = drawing.core("VAEEncode", host, pixels=image, vae=vae)[0]
    positive = drawing.call("SanaEncodePrompt", clip=clip, text=PROMPT)[0]
    for strength, steps in ((0.6, 2), (0.35, 4), (0.9, 1)):
        one = {"model": model, "positive": positive, "latent_image": encoded, "seed": 5, "steps": steps}
        drawn = drawing.decode(vae, drawing.call("SanaSCMSample", **one, denoise=strength)[0])
        assert drawing.difference(drawn, img2img(sprint, host, image, strength, steps, 5, "continuous")) < 1e-5


def test_continuous_start_keeps_part_where_the_schedule_forgets(sprint, host):
    """0.6 of two steps: the reference's integer choice leaves out no step and starts from noise alone."""
    other = controlling.image(seed=9)
    for start, kept in (("schedule", False), ("continuous", True)):
        drawn = [img2img(sprint, host, image, 0.6, 2, start=start) for image in (controlling.image(), other)]
        assert bool((drawn[0] - drawn[1]).abs().max() > 1e-3) is kept, start


@pytest.mark.parametrize("solver", ["dpm_solver++", "euler"])
@pytest.mark.parametrize("cfg,strength", [(4.5, 1.0), (1.0, 1.0), (4.5, 0.35), (4.5, 2.0)])
def test_controlnet(sana, host, sana_reference, solver, cfg, strength):
    image = controlling.image(96, 64)
    led = controlling.controlled(host, image, sana[2], strength=strength)
    mine = drawing.flow(sana, PROMPT, NEGATIVE, 96, 64, cfg=cfg, solver=solver, led=led)
    expected = controlling.by_controlnet(
        sana_reference, image, strength, solver=solver, negative=NEGATIVE, guidance_scale=cfg, num_inference_steps=4
    )
    assert drawing.difference(mine, expected) < LIMIT
    assert (mine - drawing.flow(sana, PROMPT, NEGATIVE, 96, 64, cfg=cfg, solver=solver)).abs().max() > 1e-3


def test_controlnet_with_a_batch(sana, host, sana_reference):
    image = controlling.image()
    mine = drawing.flow(sana, PROMPT, batch=2, led=controlling.controlled(host, image, sana[2]))
    assert drawing.difference(mine, controlling.by_controlnet(sana_reference, image, batch=2)) < LIMIT


def test_controlnet_acts_in_its_part_of_the_run_alone(sana, host):
    image = controlling.image()
    plain = drawing.flow(sana, PROMPT)
    whole = drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, sana[2]))
    nothing = controlling.controlled(host, image, sana[2], strength=0.0)
    assert drawing.difference(drawing.flow(sana, PROMPT, led=nothing), plain) < drawing.ROUNDING
    never = controlling.controlled(host, image, sana[2], start_percent=0.999, end_percent=1.0)
    assert drawing.difference(drawing.flow(sana, PROMPT, led=never), plain) < drawing.ROUNDING
    early = drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, sana[2], end_percent=0.3))
    late = drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, sana[2], start_percent=0.3))
    for one, other in itertools.combinations((plain, whole, early, late), 2):
        assert drawing.difference(one, other) > 1e-3


def test_two_controlnets_add_up(sana, host):
    """Two at half strength are one at full strength."""
    image = controlling.image()
    half = controlling.controlled(host, image, sana[2], strength=0.5)
    twice = drawing.flow(sana, PROMPT, led=lambda p, n: half(*half(p, n)))
    assert (
        drawing.difference(twice, drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, sana[2]))) < 1e-5
    )


def sprint_by_hand(pipeline, image, strength, seed=0):
    """diffusers' transformer, SCMScheduler and ControlNet, which no pipeline of diffusers puts together."""
    net, vae = tiny.controlnet(), pipeline.vae
    call = inspect.signature(type(pipeline).__call__).parameters
    states, mask = pipeline.encode_prompt(
        PROMPT, complex_human_instruction=call["complex_human_instruction"].default, device="cpu"
    )
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(1, 32, 2, 2, generator=generator)
    angles = [1.5708, 1.3, 0.0]
    with torch.no_grad():
        hint = vae.encode(image.movedim(-1, 1) * 2 - 1).latent * vae.config.scaling_factor
        for t, following in zip(torch.tensor(angles[:-1]), torch.tensor(angles[1:])):
            s = torch.sin(t) / (torch.cos(t) + torch.sin(t))
            scale = torch.sqrt(s**2 + (1 - s) ** 2)
            added = net(
                x * scale,
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
                timestep=1000 * s.view(1),
                controlnet_cond=hint,
                conditioning_scale=strength,
                return_dict=False,
            )[0]
            out = pipeline.transformer(
                x * scale,
                states,
                timestep=s.view(1),
                guidance=torch.tensor([0.45]),
                encoder_attention_mask=mask,
                controlnet_block_samples=tuple(added),
                return_dict=False,
            )[0]
            field = ((1 - 2 * s) * x * scale + (1 - 2 * s + 2 * s**2) * out) / scale
            x0 = torch.cos(t) * x - torch.sin(t) * field
            x = torch.cos(following) * x0 + torch.sin(following) * torch.randn(x.shape, generator=generator)
        return (vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def test_controlnet_with_sprint(sprint, host, reference, sana_reference):
    model, clip, vae = sprint
    image = controlling.image()
    positive = drawing.call("SanaEncodePrompt", clip=clip, text=PROMPT)[0]
    positive = controlling.controlled(host, image, vae, strength=0.7)(positive, positive)[0]
    latent = drawing.call("SanaEmptyLatent", width=64, height=64)[0]
    drawn = drawing.call("SanaSCMSample", model=model, positive=positive, latent_image=latent)[0]
    mine = drawing.decode(vae, drawn)
    assert drawing.difference(mine, sprint_by_hand(reference, image, 0.7)) < LIMIT
    assert (mine - drawing.ours(sprint, PROMPT)).abs().max() > 1e-3


def test_controlnets_that_do_not_fit_say_so(sana, host, home, video_references):
    model, clip, vae = sana
    image = controlling.image()
    with pytest.raises(ValueError, match="connect SANA's VAE"):
        drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, None))
    wan = drawing.call("SanaLoadPipeline", pipeline="tiny-video")[2]
    with pytest.raises(ValueError, match="16 latent channels and SANA's ControlNet takes 32"):
        drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, wan))
    wide = tiny.controlnet(num_attention_heads=3, cross_attention_dim=96, num_cross_attention_heads=3)
    wide.save_pretrained(home / "models" / "controlnet" / "tiny-wide")
    with pytest.raises(ValueError, match=r"tokens have 64 channels: load a ControlNet for the same size"):
        drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, vae, "tiny-wide"))


def test_a_controlnet_of_one_file_is_understood_from_its_shapes(sana, host, home):
    one = home / "models" / "controlnet" / "one.safetensors"
    if not one.exists():
        from safetensors.torch import save_file

        save_file(tiny.controlnet().state_dict(), one)
    image = controlling.image()
    alone = drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, sana[2], "one.safetensors"))
    whole = drawing.flow(sana, PROMPT, led=controlling.controlled(host, image, sana[2]))
    assert drawing.difference(alone, whole) < drawing.ROUNDING


@pytest.mark.parametrize("strength,steps,kept", [(0.25, 4, 1), (0.5, 4, 2), (0.6, 2, 2), (0.5, 2, 1), (0.0, 2, 0)])
def test_schedule_leaves_out_whole_steps(strength, steps, kept):
    left = trigflow.img2img_sigmas(strength, steps, start="schedule")
    whole = trigflow.scm_sigmas(steps)
    assert torch.allclose(left, whole[steps - kept :] if kept else torch.zeros(0), atol=1e-6)
