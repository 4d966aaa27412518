"""The decoded picture is diffusers' own, on both hosts: largest difference, float32, same weights and seed."""

from __future__ import annotations

import drawing
import pytest
import torch

LIMIT = 1e-4


@pytest.fixture
def parts(host):
    return drawing.call("SanaLoadPipeline", pipeline="tiny")


def same(parts, reference, prompt="a red ring on the left of a blue background", theirs=None, **settings):
    return drawing.difference(
        drawing.ours(parts, prompt, **settings), drawing.theirs(reference, prompt, **{**settings, **(theirs or {})})
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps(parts, reference, steps):
    assert same(parts, reference, steps=steps, seed=steps) < LIMIT


@pytest.mark.parametrize("steps,first,middle", [(1, 1.2, 1.3), (2, 1.4, 0.7), (2, 1.5708, 0.2), (4, 1.0, 1.3)])
def test_custom_timesteps(parts, reference, steps, first, middle):
    mine = {"steps": steps, "max_timesteps": first, "intermediate_timesteps": middle}
    theirs = {"steps": steps, "max_timesteps": first, "intermediate_timesteps": middle if steps == 2 else None}
    prompt = "a green square"
    a = drawing.ours(parts, prompt, seed=3, **mine)
    assert drawing.difference(a, drawing.theirs(reference, prompt, seed=3, **theirs)) < LIMIT


@pytest.mark.parametrize("guidance", [1.0, 4.5, 9.0])
def test_guidance(parts, reference, guidance):
    assert same(parts, reference, guidance=guidance) < LIMIT


@pytest.mark.parametrize("width,height", [(96, 32), (32, 128), (160, 96)])
def test_sizes(parts, reference, width, height):
    assert same(parts, reference, width=width, height=height) < LIMIT


def test_batch_of_three(parts, reference):
    assert same(parts, reference, batch=3, seed=11) < LIMIT


LONG = "a red ring on the left of a blue background and " * 60


@pytest.mark.parametrize(
    "prompt", ["", "  A Red RING  ", "日本の山と海、夕焼け", LONG], ids=["empty", "case", "kanji", "long"]
)
def test_prompts(parts, reference, prompt):
    assert same(parts, reference, prompt) < LIMIT


def test_short_limit(parts, reference):
    mine = drawing.ours(parts, LONG, encoding={"max_sequence_length": 9})
    assert drawing.difference(mine, drawing.theirs(reference, LONG, max_sequence_length=9)) < LIMIT


@pytest.mark.parametrize("name,custom", [("none", ""), ("custom", "Draw this:\n"), ("custom", "")])
def test_instructions(parts, reference, name, custom):
    encoding = {"instruction": name, "custom_instruction": custom}
    mine = drawing.ours(parts, "a yellow cross", encoding=encoding)
    instruction = [custom] if custom else None
    theirs = drawing.theirs(reference, "a yellow cross", complex_human_instruction=instruction)
    assert drawing.difference(mine, theirs) < LIMIT


def test_clean_caption(parts, reference):
    prompt = "a <b>red</b> ring #123 https://example.org &amp; more"
    mine = drawing.ours(parts, prompt, encoding={"clean_caption": True})
    assert drawing.difference(mine, drawing.theirs(reference, prompt, clean_caption=True)) < LIMIT


def by_hand(pipeline, prompt, timesteps, seed):
    """diffusers' transformer and SCMScheduler driven step by step: its pipeline refuses lists of timesteps."""
    scheduler, generator = pipeline.scheduler, torch.Generator("cpu").manual_seed(seed)
    scheduler.set_timesteps(len(timesteps) - 1, timesteps=timesteps, max_timesteps=None, intermediate_timesteps=None)
    scheduler.set_begin_index(0)
    import inspect

    call = inspect.signature(type(pipeline).__call__).parameters
    states, mask = pipeline.encode_prompt(
        prompt, complex_human_instruction=call["complex_human_instruction"].default, device="cpu"
    )
    latents = torch.randn((1, 32, 2, 2), generator=generator) * 0.5
    guidance = torch.tensor([4.5]) * pipeline.transformer.config.guidance_embeds_scale
    with torch.no_grad():
        for t in scheduler.timesteps[:-1]:
            s = (torch.sin(t) / (torch.cos(t) + torch.sin(t))).view(1, 1, 1, 1)
            scale = torch.sqrt(s**2 + (1 - s) ** 2)
            seen = latents / 0.5 * scale
            out = pipeline.transformer(
                seen, states, timestep=s.view(1), guidance=guidance, encoder_attention_mask=mask, return_dict=False
            )[0]
            out = ((1 - 2 * s) * seen + (1 - 2 * s + 2 * s**2) * out) / scale * 0.5
            latents, x0 = scheduler.step(out, t.view(1), latents, generator=generator, return_dict=False)
        picture = pipeline.vae.decode(x0 / 0.5 / pipeline.vae.config.scaling_factor).sample
    return (picture / 2 + 0.5).clamp(0, 1).movedim(1, -1)


@pytest.mark.parametrize("text", ["1.5708, 1.1, 0.6, 0", "1.2,0.4,0", "1.5708"])
def test_custom_timestep_lists(parts, reference, text):
    sigmas = drawing.call("SanaSCMSigmas", timesteps=text)[0]
    mine = drawing.ours(parts, "a white diamond", seed=5, sigmas=sigmas)
    assert drawing.difference(mine, by_hand(reference, "a white diamond", sigmas.tolist(), 5)) < LIMIT


def test_parts_loaded_one_by_one(host, reference):
    model = drawing.call("SanaLoadTransformer", model_name="tiny")[0]
    clip = drawing.call("SanaLoadTextEncoder", encoder_name="tiny")[0]
    vae = drawing.call("SanaLoadVAE", vae_name="tiny")[0]
    assert same((model, clip, vae), reference) < LIMIT


def test_seeds_and_prompts_matter(parts):
    first = drawing.ours(parts, "a red ring", seed=1)
    assert (first - drawing.ours(parts, "a red ring", seed=2)).abs().max() > 1e-2
    assert (first - drawing.ours(parts, "a blue cross in the middle", seed=1)).abs().max() > 1e-4
