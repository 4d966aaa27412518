"""SANA images by diffusers' pipelines, with and without a ControlNet, and the same ControlNet on our nodes."""

from __future__ import annotations

import drawing
import tiny
import torch

PROMPT = "a red ring on the left of a blue background"


def image(width: int = 64, height: int = 64, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """An image [B, H, W, 3] of 8 bits, smooth enough that an autoencoder tells its parts apart."""
    noise = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().div(255).movedim(1, -1)


def theirs(
    pipeline, solver="dpm_solver++", shift=3.0, negative="", width=64, height=64, batch=1, seed=0, kind=None, **given
):
    """``kind``: makes another pipeline of the same parts."""
    parts = {**pipeline.components, "scheduler": tiny.flow_scheduler(solver, shift)}
    maker = (kind or type(pipeline))(**parts)
    maker.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 4, "guidance_scale": 4.5, **given}
    return maker(
        PROMPT,
        negative_prompt=negative,
        width=width,
        height=height,
        num_images_per_prompt=batch,
        generator=torch.Generator("cpu").manual_seed(seed),
        use_resolution_binning=False,
        output_type="pt",
        **given,
    ).images.movedim(1, -1)


def controlled(host, image, vae, net="tiny-control", **given):
    net = drawing.call("SanaLoadControlNet", control_net_name=net)[0]
    asked = {"control_net": net, "image": image, "vae": vae, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    return lambda positive, negative: drawing.core(
        "ControlNetApplyAdvanced", host, positive=positive, negative=negative, **{**asked, **given}
    )[:2]


def by_controlnet(pipeline, image, strength=1.0, network=None, **given):
    from diffusers import SanaControlNetPipeline

    maker = SanaControlNetPipeline(**pipeline.components, controlnet=network or tiny.controlnet())
    given = {"width": image.shape[2], "height": image.shape[1], **given}
    led = {"control_image": image.movedim(-1, 1) * 2 - 1, "controlnet_conditioning_scale": strength}
    return theirs(maker, **given, **led)
