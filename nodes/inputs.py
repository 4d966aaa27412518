"""Inputs that several nodes share, and checks of their values."""

from __future__ import annotations

import torch

from ..samplers import trigflow


def _angle(default: float, tip: str):
    return (
        "FLOAT",
        {
            "default": default,
            "min": 0.0,
            "max": 1.5709,
            "step": 0.0001,
            "round": 0.00001,
            "tooltip": tip,
            "advanced": True,
        },
    )


def seed_input():
    seed = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True, "tooltip": "The noise seed."}
    return ("INT", seed)


def schedule_inputs() -> dict:
    """The schedule of SANA-Sprint: steps and two angles."""
    steps = {
        "default": 2,
        "min": 1,
        "max": 1000,
        "tooltip": "Number of steps. SANA-Sprint is made for 1 to 4; 2 is best.",
    }
    return {
        "steps": ("INT", steps),
        "max_timesteps": _angle(1.5708, "The first angle, in radians; 1.5708 (pi/2) is pure noise."),
        "intermediate_timesteps": _angle(
            1.3, "The second angle of a two-step schedule, in radians; ignored with other step counts."
        ),
    }


def denoise_input():
    tip = "Below 1, sampling starts later and keeps part of the image in the latent (image to image)."
    return ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tip})


def validate_schedule(steps=None, max_timesteps=None, intermediate_timesteps=None, denoise=None, timesteps=None, **_):
    """True, or an error message for a schedule, which ComfyUI shows before it runs anything.

    An input that is connected to another node is None here and is checked when the node runs.
    """
    first = trigflow.MAX_ANGLE if max_timesteps is None else max_timesteps
    middle = intermediate_timesteps
    if middle is None or max_timesteps is None:
        middle = first / 2
    try:
        chosen = trigflow.parse_timesteps(timesteps or "")
        trigflow.scm_sigmas(1 if steps is None else steps, first, middle, 1.0 if denoise is None else denoise, chosen)
    except ValueError as error:
        return str(error)
    return True


def samples_of(latent: dict, spec) -> torch.Tensor:
    """The latent's samples, [B, C, H, W] or [B, C, F, H, W] for video; ValueError if they do not fit the model."""
    samples = latent["samples"]
    wanted = "[batch, {}, frames, height, width]" if spec.family.video else "[batch, {}, height, width]"
    if samples.ndim != wanted.count(",") + 1 or samples.shape[1] != spec.latent_channels:
        vae = spec.space.name if spec.space else "the VAE of its size"
        raise ValueError(
            f"the latent has the shape {list(samples.shape)} and {spec.name} takes "
            f"{wanted.format(spec.latent_channels)}: make it with {spec.family.latent_node}, or encode with {vae}, "
            "which is this model's"
        )
    for name, size, patch in zip(("width", "height", "frames"), reversed(samples.shape[2:]), reversed(spec.patch)):
        if size % patch:
            raise ValueError(
                f"the latent's {name} is {size}, but {spec.name} needs a multiple of its patch size {patch}: "
                f"give a {name} of {size - size % patch} or {size - size % patch + patch} latent cells"
            )
    return samples
