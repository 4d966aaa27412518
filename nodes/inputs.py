"""Inputs that several nodes share, and what is wrong with their values."""

from __future__ import annotations

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
    seed = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True, "tooltip": "The noise's seed."}
    return ("INT", seed)


def schedule_inputs() -> dict:
    """SANA-Sprint's: steps and its two angles."""
    steps = {
        "default": 2,
        "min": 1,
        "max": 1000,
        "tooltip": "SANA-Sprint generates in 1 to 4 steps; 2 is best.",
    }
    return {
        "steps": ("INT", steps),
        "max_timesteps": _angle(1.5708, "The first angle, in radians; 1.5708 (pi/2) is pure noise."),
        "intermediate_timesteps": _angle(
            1.3, "The second angle of two steps, in radians; other step counts ignore it."
        ),
    }


def denoise_input():
    tip = "Below 1 it starts later and keeps part of the latent's image: image to image."
    return ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tip})


def validate_schedule(steps, max_timesteps, intermediate_timesteps, denoise=None, timesteps=None):
    """True, or what is wrong with a schedule; ComfyUI shows it before it runs anything.

    An input that another node gives is None here and is checked when the node runs.
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
