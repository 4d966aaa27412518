"""SANA's autoencoders: a folder or one file, to a module and what a host needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import dc_ae, ltx2_vae, wan_vae
from .checkpoints import Checkpoint, describing, open_checkpoint, require_kind

HINT = "Give SanaLoadVAE a DC-AE, a Wan 2.1 VAE or an LTX-2 video VAE (models/vae)."

NAMES = {"dc-ae": "DC-AE", "wan": "the Wan 2.1 VAE", "ltx2": "the LTX-2 video VAE"}
CHANNELS = {16: "wan", 32: "dc-ae", 128: "ltx2"}
"""Which autoencoder a latent of so many channels is for."""


@dataclass(frozen=True)
class VaeSpec:
    """What a host needs to know of an autoencoder.

    ``spatial_ratio``: pixels per latent cell and side. ``temporal_ratio``: frames per latent frame
    after the first; 1 for pictures. What the autoencoder itself calls a latent is a LATENT times
    ``gain`` plus ``offset``, by channel (one number: for all).
    """

    family: str
    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int = 1
    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)

    @property
    def name(self) -> str:
        return NAMES[self.family]

    @property
    def is_video(self) -> bool:
        return self.family != "dc-ae"


@dataclass(frozen=True)
class LoadedVae:
    module: object
    spec: VaeSpec
    path: Path


BUILDERS: dict[str, Callable[[Checkpoint], tuple[object, dict]]] = {
    "DC-AE": dc_ae.build,
    "DC-AE in NVlabs' naming": dc_ae.build_from_original,
    "Wan VAE": wan_vae.build,
    "Wan VAE in Wan's naming": wan_vae.build_from_original,
    "LTX-2 video VAE": ltx2_vae.build,
}
"""What a checkpoint is to the function that gives its module and the VaeSpec's fields."""


def load_vae(path: Path) -> LoadedVae:
    """An AutoencoderDC, AutoencoderKLWan or AutoencoderKLLTX2Video with the file's own dtype, its weights mapped."""
    checkpoint = open_checkpoint(path)
    kind = require_kind(checkpoint, tuple(BUILDERS), HINT)
    with describing(checkpoint, kind):
        module, fields = BUILDERS[kind](checkpoint)
    return LoadedVae(module, VaeSpec(**fields), checkpoint.path)


def _by_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *(1,) * (like.ndim - 2))


def to_autoencoder(spec: VaeSpec, latent: torch.Tensor) -> torch.Tensor:
    """A LATENT's samples [B, C, ...] as the autoencoder has them; ValueError for another's."""
    if latent.ndim != (5 if spec.is_video else 4) or latent.shape[1] != spec.latent_channels:
        raise ValueError(wrong_latent(spec, latent.shape))
    return latent * _by_channel(spec.gain, latent) + _by_channel(spec.offset, latent)


def from_autoencoder(spec: VaeSpec, raw: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`to_autoencoder`."""
    return (raw - _by_channel(spec.offset, raw)) / _by_channel(spec.gain, raw)


def wrong_latent(spec: VaeSpec, shape) -> str:
    """What to do about a latent that this autoencoder cannot decode."""
    takes = f"{spec.latent_channels} channels" + (" and frames" if spec.is_video else "")
    right = NAMES.get(CHANNELS.get(shape[1])) if len(shape) > 1 else None
    right = f"decode it with {right}" if right else "decode it with the VAE of the model that made it"
    return f"the latent has the shape {list(shape)} and this VAE ({spec.name}) takes {takes}: {right}"


def cropped(spec: VaeSpec, pixels: torch.Tensor) -> torch.Tensor:
    """The middle of pictures or frames [..., H, W, C] whose sides whole latent cells cover, as ComfyUI cuts it.

    ValueError for a side of less than one cell.
    """
    for dim in (-3, -2):
        side = pixels.shape[dim]
        if side < spec.spatial_ratio:
            raise ValueError(f"the picture is {side} pixels on a side; {spec.name} needs at least {spec.spatial_ratio}")
        left_over = side % spec.spatial_ratio
        pixels = pixels.narrow(dim, left_over // 2, side - left_over)
    return pixels


def frames_to_latent(spec: VaeSpec, frames: int) -> int:
    """Latent frames of so many frames: the first by itself, then one for each whole ``temporal_ratio`` of them."""
    return (frames - 1) // spec.temporal_ratio + 1


def latent_to_frames(spec: VaeSpec, latent_frames: int) -> int:
    """Frames that so many latent frames decode to."""
    return (latent_frames - 1) * spec.temporal_ratio + 1


def neutral_latent(channels: int) -> torch.Tensor:
    """The LATENT that the transformer sees as zeros: [C]. ComfyUI carries Wan's latents unnormalised."""
    return torch.tensor(wan_vae.MEAN) if channels == len(wan_vae.MEAN) else torch.zeros(channels)
