"""sana/sampling: SCM, the sampler of SANA-Sprint."""

from __future__ import annotations

import torch

from .. import host
from ..samplers import noise, trigflow


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


def _schedule_inputs() -> dict:
    steps = {
        "default": 2,
        "min": 1,
        "max": 1000,
        "tooltip": "SANA-Sprint draws in 1 to 4 steps; 2 is what it is best at.",
    }
    denoise = {
        "default": 1.0,
        "min": 0.0,
        "max": 1.0,
        "step": 0.01,
        "tooltip": "Below 1 it starts later and keeps part of the latent's picture: image to image.",
    }
    return {
        "steps": ("INT", steps),
        "max_timesteps": _angle(1.5708, "The first angle, in radians; 1.5708 (pi/2) is pure noise."),
        "intermediate_timesteps": _angle(
            1.3, "The second angle of two steps, in radians; other step counts ignore it."
        ),
        "denoise": ("FLOAT", denoise),
    }


def _schedule_said(steps, max_timesteps, intermediate_timesteps, denoise, timesteps=None):
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


def _require_sprint(model) -> None:
    spec = host.current().model_spec(model)
    if spec is None:
        kind = host.current().describe_model(model)
        raise ValueError(
            f"this MODEL ({kind}) is not SANA-Sprint: load one with SanaLoadPipeline or SanaLoadTransformer"
        )
    if spec.family != "sprint":
        raise ValueError(
            f"this MODEL is SANA of the family {spec.family!r}, not SANA-Sprint: sample it with SanaFlowSample"
        )


def _samples_of(latent: dict, model) -> torch.Tensor:
    """The latent's samples [B, C, H, W], checked against the model."""
    samples = latent["samples"]
    channels = host.current().model_spec(model).latent_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"the latent has the shape {list(samples.shape)} and SANA-Sprint takes [batch, {channels}, height, width]: "
            "make it with SanaEmptyLatent, or encode a picture with SANA's own VAE"
        )
    return samples


class SanaSCMSample:
    DISPLAY_NAME = "Sana SCM Sample"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "Draws with SANA-Sprint in 1 to 4 steps. The same seed gives the picture that diffusers gives."
    SEARCH_ALIASES = ["sana", "sana sprint", "ksampler", "scm", "sampler"]
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The drawn latent; decode it with SANA's VAE.",)

    @classmethod
    def INPUT_TYPES(cls):
        seed = {
            "default": 0,
            "min": 0,
            "max": 2**64 - 1,
            "control_after_generate": True,
            "tooltip": "The noise's seed.",
        }
        add_noise = {"default": "enable", "tooltip": "disable when the latent is noised already.", "advanced": True}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A SANA-Sprint transformer."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt, from SanaEncodePrompt."}),
                "latent_image": ("LATENT", {"tooltip": "Empty for text to image, or a picture to start from."}),
                "seed": ("INT", seed),
                **_schedule_inputs(),
                "add_noise": (["enable", "disable"], add_noise),
            },
            "optional": {"sigmas": ("SIGMAS", {"tooltip": "Angles that replace the four schedule inputs."})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, steps=None, max_timesteps=None, intermediate_timesteps=None, denoise=None):
        return _schedule_said(steps, max_timesteps, intermediate_timesteps, denoise)

    def sample(
        self,
        model,
        positive,
        latent_image,
        seed,
        steps,
        max_timesteps,
        intermediate_timesteps,
        denoise,
        add_noise,
        sigmas=None,
    ):
        _require_sprint(model)
        samples = _samples_of(latent_image, model)
        if sigmas is None:
            sigmas = trigflow.scm_sigmas(steps, max_timesteps, intermediate_timesteps, denoise)
        if len(trigflow.check_sigmas(sigmas)) < 2:
            return (latent_image,)
        generator = noise.seeded_generator(seed)
        start = noise.draw(generator, samples.shape)
        if add_noise == "disable":
            start = torch.zeros_like(start)
        following = noise.continued_noise(generator, samples.shape)
        drawn = host.current().sample(
            model, positive, latent_image, start, sigmas, trigflow.sample_scm, seed, noise_sampler=following
        )
        return (drawn,)


class SanaSCMSigmas:
    DISPLAY_NAME = "Sana SCM Sigmas"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "The angles of a SANA-Sprint run, for SanaSCMSample or SamplerCustomAdvanced."
    SEARCH_ALIASES = ["sana", "scheduler", "sigmas", "timesteps", "scm"]
    FUNCTION = "make"
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Falling angles in radians, the last one 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        timesteps = {
            "default": "",
            "tooltip": "Falling angles such as 1.5708, 1.1, 0.6; they replace steps and both timesteps.",
        }
        return {"required": _schedule_inputs(), "optional": {"timesteps": ("STRING", timesteps)}}

    @classmethod
    def VALIDATE_INPUTS(cls, steps=None, max_timesteps=None, intermediate_timesteps=None, denoise=None, timesteps=None):
        return _schedule_said(steps, max_timesteps, intermediate_timesteps, denoise, timesteps)

    def make(self, steps, max_timesteps, intermediate_timesteps, denoise, timesteps=""):
        chosen = trigflow.parse_timesteps(timesteps)
        return (trigflow.scm_sigmas(steps, max_timesteps, intermediate_timesteps, denoise, chosen),)


class SanaSCMSampler:
    DISPLAY_NAME = "Sana SCM Sampler"
    CATEGORY = "sana/sampling"
    DESCRIPTION = (
        "SANA-Sprint's sampler for SamplerCustomAdvanced; the noise of its steps follows the seed as in diffusers."
    )
    SEARCH_ALIASES = ["sana", "sampler", "scm", "lcm"]
    FUNCTION = "get"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("A sampler for SamplerCustomAdvanced.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def get(self):
        return (host.current().sampler(trigflow.sample_scm),)
