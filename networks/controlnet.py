"""A loaded SANA ControlNet: checks of its inputs, its timestep and its residuals."""

from __future__ import annotations

from dataclasses import dataclass

from ..samplers.trigflow import TrigFlow, flow_time


@dataclass(frozen=True)
class ControlNetSpec:
    """``width``: channels of a token. ``layers``: the number of transformer blocks that get a residual."""

    latent_channels: int
    width: int
    layers: int


def check_vae(spec: ControlNetSpec, vae, channels: int | None, is_video: bool) -> None:
    """ValueError if ``vae`` (with ``channels`` latent channels) cannot encode the control image."""
    if vae is None:
        raise ValueError(
            "SANA's ControlNet needs DC-AE to encode the control image: connect SANA's VAE to the vae input of "
            "ControlNetApplyAdvanced"
        )
    if is_video or channels != spec.latent_channels:
        raise ValueError(
            f"this VAE has {channels} latent channels and SANA's ControlNet takes {spec.latent_channels}: connect "
            "DC-AE, SANA's VAE for images, to the vae input of ControlNetApplyAdvanced"
        )


def check_latent(spec: ControlNetSpec, shape) -> None:
    """ValueError if the ControlNet does not support the latent of ``shape`` that is sampled."""
    if len(shape) != 4 or shape[1] != spec.latent_channels:
        raise ValueError(
            f"SANA's ControlNet supports images with {spec.latent_channels} latent channels; the latent of this model "
            f"has the shape {list(shape)}"
        )


def control_time(sampling, sigma):
    """The ControlNet's timestep [B], 0 to 1000: always that of flow matching, also with SANA-Sprint."""
    return flow_time(sigma) if isinstance(sampling, TrigFlow) else sampling.timestep(sigma)


def control_residuals(module, x, time, context, hint) -> list:
    """The residuals after each block of the transformer except the first: [B, tokens, width] each.

    ``x`` [B, C, H, W], ``time`` [B] from 0 to 1000, ``context`` [1 or B, L, caption_channels], ``hint``
    [1 or B, C, H, W] the latent of the control image (SanaControlNetPipeline).
    """
    return module(
        x,
        encoder_hidden_states=context.expand(x.shape[0], -1, -1),
        timestep=time,
        controlnet_cond=hint,
        return_dict=False,
    )[0]
