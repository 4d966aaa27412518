"""A loaded SANA ControlNet: checks of its inputs, its timestep and its residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..samplers.trigflow import TrigFlow, flow_time


@dataclass(frozen=True)
class ControlNetSpec:
    """``width``: channels of a token. ``layers``: the number of transformer blocks that get a residual.

    ``clips``: as in a TransformerSpec; SANA's ControlNets were trained for SANA 1.0.
    """

    latent_channels: int
    width: int
    layers: int
    clips: bool = False


def check_vae(spec: ControlNetSpec, vae, channels: int | None, is_video: bool) -> None:
    """ValueError if ``vae`` (with ``channels`` latent channels) cannot encode the control image."""
    if vae is None:
        raise ValueError(
            "SANA's ControlNet needs DC-AE to encode the control image: connect SANA's VAE to the vae input of "
            "Apply ControlNet"
        )
    if is_video or channels != spec.latent_channels:
        raise ValueError(
            f"this VAE has {channels} latent channels and SANA's ControlNet takes {spec.latent_channels}: connect "
            "DC-AE, SANA's VAE for images, to the vae input of Apply ControlNet"
        )


def check_latent(spec: ControlNetSpec, shape) -> None:
    """ValueError if the ControlNet does not support the latent of ``shape`` that is sampled."""
    if len(shape) != 4 or shape[1] != spec.latent_channels:
        raise ValueError(
            f"SANA's ControlNet supports images with {spec.latent_channels} latent channels; the latent of this model "
            f"has the shape {list(shape)}"
        )


Cover = Callable[[torch.Tensor, int, int], torch.Tensor]
"""An image [H, W, C] cut and resized to a width and a height."""


def hint_latent(spec: ControlNetSpec, images, shape, ratio: int, cover: Cover, encode: Callable) -> torch.Tensor:
    """The latent [1 or B, C, h, w] that leads what is sampled, a latent of ``shape`` [B, C, h, w].

    ``images`` [N, H, W, C] in [0, 1]: one leads the whole batch. Of several each leads one image; what is
    too many is left out, and where they are too few they begin again (comfy.controlnet.broadcast_image_to).
    ``ratio``: pixels on a side of a latent cell; ``encode``: the autoencoder's.
    """
    check_latent(spec, shape)
    height, width = (side * ratio for side in shape[-2:])
    hint = encode(torch.stack([cover(image, width, height) for image in images[: shape[0]]]))
    return hint if len(hint) == 1 else hint[torch.arange(shape[0]) % len(hint)]


def acts_at(sampling, sigma: torch.Tensor, first: float, last: float) -> bool:
    """Whether noise levels ``sigma`` [B] are in the part of a run from level ``first`` down to ``last``.

    For a part of the run the program waits for the level; for the whole run it need not. ``sampling``: the
    model_sampling object whose levels these are.
    """
    return (first >= sampling.percent_to_sigma(0.0) and last <= 0) or last <= sigma[0].item() <= first


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
