"""A run of a sampler through ComfyUI's guider: memory, previews, progress and interrupt are its."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview


def sample(patcher, positive, latent: dict, noise, sigmas, function, seed: int, options: dict) -> dict:
    """Sample without classifier-free guidance; returns the LATENT with new ``samples``."""
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_set_conds({"positive": positive})
    out = guider.sample(
        noise,
        samples,
        comfy.samplers.KSAMPLER(function, options),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(patcher, sigmas.shape[-1] - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": out.to(comfy.model_management.intermediate_device())}
