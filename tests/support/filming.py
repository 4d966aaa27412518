"""Make videos with our nodes, called as an executor calls them, and with diffusers."""

from __future__ import annotations

import drawing
import tiny
import torch

PROMPT = "a red ring moving right on a blue background"
NEGATIVE = "a green square"


def latent(vae, image=None, width=64, height=64, frames=5, batch=1) -> dict:
    settings = {"vae": vae, "width": width, "height": height, "frames": frames, "batch_size": batch}
    if image is None:
        return drawing.call("SanaEmptyVideoLatent", **settings)[0]
    return drawing.call("SanaImageToVideoLatent", image=image, **settings)[0]


def sampled(parts, start: dict, prompt=PROMPT, negative=NEGATIVE, motion=30, steps=3, seed=0, cfg=6.0, **sampling):
    model, clip, _ = parts
    said = {"clip": clip, "prompt": prompt, "negative_prompt": negative, "motion_score": motion}
    positive, negative = drawing.call("SanaEncodeVideoPrompt", **said)
    led = {"model": model, "positive": positive, "negative": negative, "latent_image": start}
    return drawing.call("SanaFlowSample", **led, seed=seed, steps=steps, cfg=cfg, **sampling)[0]


def ours(parts, image=None, width=64, height=64, frames=5, batch=1, sigmas=None, shift=0.0, **settings):
    """The frames [B * F, H, W, 3] of our nodes over ``parts`` (MODEL, CLIP, VAE)."""
    start = latent(parts[2], image, width, height, frames, batch)
    if sigmas is not None:
        settings["sigmas"] = shifted(sigmas)
    return drawing.decode(parts[2], sampled(parts, start, shift=shift, **settings)).flatten(0, 1)


def shifted(sigmas) -> torch.Tensor:
    """What diffusers' Euler scheduler makes of custom sigmas: its shift of 8, and a 0 at the end."""
    values = torch.tensor(sigmas)
    return torch.cat([8.0 * values / (1 + 7.0 * values), torch.zeros(1)])


def theirs(
    pipeline,
    image=None,
    prompt=PROMPT,
    negative=NEGATIVE,
    motion=30,
    width=64,
    height=64,
    frames=5,
    batch=1,
    steps=3,
    seed=0,
    cfg=6.0,
    shift=0.0,
    solver="dpm_solver++",
    sigmas=None,
):
    """The frames [B * F, H, W, 3] of diffusers' pipelines."""
    from diffusers import SanaImageToVideoPipeline, SanaVideoPipeline

    parts = {**pipeline.components, "scheduler": tiny.flow_scheduler(solver, shift or 8.0)}
    kind = SanaVideoPipeline if image is None else SanaImageToVideoPipeline
    maker = kind(**parts)
    maker.set_progress_bar_config(disable=True)
    given = {} if image is None else {"image": as_picture(image[0])}
    if sigmas is not None:
        given["sigmas"] = sigmas
    else:
        given["num_inference_steps"] = steps
    video = maker(
        prompt=[f"{prompt} motion score: {motion}."] * batch,
        negative_prompt=[negative] * batch,
        width=width,
        height=height,
        frames=frames,
        guidance_scale=cfg,
        generator=torch.Generator("cpu").manual_seed(seed),
        use_resolution_binning=False,
        output_type="pt",
        **given,
    ).frames
    return video.flatten(0, 1).movedim(1, -1)


def as_picture(image: torch.Tensor):
    """A picture [H, W, 3] as diffusers takes it: a tensor of the right size, else a PIL image."""
    from PIL import Image

    if image.shape[:2] == (64, 64):
        return image.movedim(-1, 0)[None]
    return Image.fromarray(image.mul(255).round().to(torch.uint8).numpy())
