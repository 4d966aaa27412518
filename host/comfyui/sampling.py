"""A run of a sampler through ComfyUI's guider, which handles memory, previews, progress and interrupts."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview

from ...networks.previews import moving_frame


def guider(patcher, positive, negative=None, cfg: float = 1.0):
    """ComfyUI's guider for a prompt or, with a ``negative``, for classifier-free guidance."""
    made = comfy.samplers.CFGGuider(patcher)
    if negative is None:
        made.inner_set_conds({"positive": positive})
    else:
        made.set_conds(positive, negative)
        made.set_cfg(cfg)
    return made


def _callback(patcher, steps: int):
    """ComfyUI's progress and preview, of a video's middle frame: its tiny decoders show the first one."""
    show = latent_preview.prepare_callback(patcher, steps)

    def callback(step, x0, x, _):
        show(step, moving_frame(x0) if x0.ndim == 5 else x0, x, steps)

    return callback


def sample(guide, latent: dict, noise, sigmas, function, seed: int, options: dict, steps: int | None = None) -> dict:
    """Run a sampler function over a LATENT; returns it with new ``samples``.

    ``steps``: how many the function tells, if there are others than between ``sigmas``.
    """
    patcher = guide.model_patcher
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    out = guide.sample(
        noise,
        samples,
        comfy.samplers.KSAMPLER(function, options),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=_callback(patcher, steps or sigmas.shape[-1] - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": out.to(comfy.model_management.intermediate_device())}
