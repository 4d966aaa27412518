"""SANA's ControlNets: a folder or one file, in diffusers' naming or NVlabs', to a SanaControlNetModel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoints import build_from_config, describing, load_strictly, open_checkpoint, require_kind
from .nvlabs_naming import position_config, to_diffusers
from .transformer import config_from_shapes

KINDS = ("SANA ControlNet", "SANA ControlNet in NVlabs' naming")
HINT = "Give SanaLoadControlNet a SANA ControlNet (models/controlnet)."


@dataclass(frozen=True)
class ControlNetSpec:
    """``width``: channels of a token; ``layers``: blocks of the transformer that it adds to, after the first."""

    latent_channels: int
    width: int
    layers: int


@dataclass(frozen=True)
class LoadedControlNet:
    module: object
    spec: ControlNetSpec
    path: Path


def load_controlnet(path: Path) -> LoadedControlNet:
    """A SanaControlNetModel with the file's own dtype, its weights mapped."""
    checkpoint = open_checkpoint(path)
    kind = require_kind(checkpoint, KINDS, HINT)
    with describing(checkpoint, kind):
        config = checkpoint.config_with("num_layers")
        positions = position_config(checkpoint)
        checkpoint, _ = to_diffusers(checkpoint, kind)

        from diffusers import SanaControlNetModel

        config = config or {**config_from_shapes(checkpoint), **positions}
        module = build_from_config(SanaControlNetModel, config, checkpoint.path)
        load_strictly(module, checkpoint)
        width = module.config.num_attention_heads * module.config.attention_head_dim
        return LoadedControlNet(
            module, ControlNetSpec(module.config.in_channels, width, module.config.num_layers), checkpoint.path
        )


def check_vae(spec: ControlNetSpec, vae, channels: int | None, is_video: bool) -> None:
    """ValueError where ``vae``, of so many latent channels, cannot encode what a ControlNet is led by."""
    if vae is None:
        raise ValueError(
            "SANA's ControlNet reads its picture through DC-AE: connect SANA's VAE to the vae input of "
            "ControlNetApplyAdvanced"
        )
    if is_video or channels != spec.latent_channels:
        raise ValueError(
            f"this VAE has {channels} latent channels and SANA's ControlNet takes {spec.latent_channels}: connect DC-AE, "
            "SANA's VAE for pictures"
        )


def check_latent(spec: ControlNetSpec, shape) -> None:
    """ValueError where a ControlNet cannot lead what is drawn: a latent of ``shape``."""
    if len(shape) != 4 or shape[1] != spec.latent_channels:
        raise ValueError(
            f"SANA's ControlNet leads pictures of {spec.latent_channels} latent channels; this model's latent has the "
            f"shape {list(shape)}"
        )


def control_residuals(module, x, time, context, hint) -> list:
    """What a ControlNet adds after each block of the transformer but the first: [B, tokens, width] each.

    ``x`` [B, C, H, W], ``time`` [B] from 0 to 1000, ``context`` [1 or B, L, caption_channels], ``hint``
    [1 or B, C, H, W] the latent of what it is led by (SanaControlNetPipeline).
    """
    return module(
        x,
        encoder_hidden_states=context.expand(x.shape[0], -1, -1),
        timestep=time,
        controlnet_cond=hint,
        return_dict=False,
    )[0]
