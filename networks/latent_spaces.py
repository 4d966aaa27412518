"""Latent spaces: a frozen row for each autoencoder that SANA uses.

A new latent space is a row here, its config in model_loaders/autoencoders, and its tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line lists models without torch
    import torch


@dataclass(frozen=True)
class LatentSpace:
    """One row.

    ``channels`` of a latent cell; ``cell``: its width and height in pixels; ``frames``: frames per latent
    frame after the first, 1 for images; ``video``: latents have frames [B, C, F, h, w]. ``smallest_side`` in
    latent cells. ``mean`` and ``std``, per channel: ComfyUI's LATENT is the transformer's input times std
    plus mean; empty if both are equal.
    """

    key: str
    name: str
    channels: int
    cell: int
    frames: int = 1
    video: bool = False
    smallest_side: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


DC_AE = LatentSpace("dc-ae", "DC-AE", 32, 32)
WAN = LatentSpace(
    "wan",
    "the Wan 2.1 VAE",
    16,
    8,
    frames=4,
    video=True,
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    std=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)
"""Mean and standard deviation of the published Wan 2.1 latents (AutoencoderKLWan's defaults).

ComfyUI's LATENT of 16 channels is not normalised: ComfyUI's models normalise it, with these numbers. Latents of
a VAE with other numbers are converted to them, so that a transformer works with the core VAE and with ours.
"""

LTX2 = LatentSpace("ltx2", "the LTX-2 video VAE", 128, 32, frames=8, video=True, smallest_side=2)
DC_AE_V = LatentSpace("dc-ae-v", "DC-AE-V", 32, 32, frames=4, video=True)
"""The autoencoder of SANA-Video's paper; diffusers has no class for it, so it is not supported as a VAE."""

LATENT_SPACES = (DC_AE, WAN, LTX2, DC_AE_V)


def space_of(channels: int, video: bool) -> LatentSpace | None:
    """The latent space with this number of channels, or None."""
    return next((row for row in LATENT_SPACES if (row.channels, row.video) == (channels, video)), None)


def normalise(space: LatentSpace | None, samples: torch.Tensor) -> torch.Tensor:
    """A LATENT's samples [B, C, ...] as the transformer's input."""
    return samples if space is None or not space.mean else (samples - _mean(space, samples)) / _std(space, samples)


def denormalise(space: LatentSpace | None, samples: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`normalise`."""
    return samples if space is None or not space.mean else samples * _std(space, samples) + _mean(space, samples)


def neutral_latent(space: LatentSpace) -> torch.Tensor:
    """The LATENT that is zeros as the transformer's input: [C]."""
    import torch

    return torch.tensor(space.mean) if space.mean else torch.zeros(space.channels)


def _mean(space: LatentSpace, like: torch.Tensor) -> torch.Tensor:
    return by_channel(space.mean, like)


def _std(space: LatentSpace, like: torch.Tensor) -> torch.Tensor:
    return by_channel(space.std, like)


def by_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    """Values per channel (a single number is for all), broadcastable to ``like`` [B, C, ...]."""
    import torch

    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *(1,) * (like.ndim - 2))


@dataclass(frozen=True)
class VaeSpec:
    """The parameters of a loaded autoencoder.

    The module's latent is a LATENT times ``gain`` plus ``offset``, per channel (a single number is for all).
    ``latent_channels``, ``spatial_ratio`` and ``temporal_ratio`` are the module's; in published models they
    equal those of the latent space.
    """

    space: LatentSpace
    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int = 1
    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)

    @property
    def name(self) -> str:
        return self.space.name

    @property
    def is_video(self) -> bool:
        return self.space.video

    def latent_frames(self, frames: int) -> int:
        """The number of latent frames: one for the first frame, then one for every ``temporal_ratio`` frames."""
        return (frames - 1) // self.temporal_ratio + 1

    def frames(self, latent_frames: int) -> int:
        """The number of frames that ``latent_frames`` decode to."""
        return (latent_frames - 1) * self.temporal_ratio + 1
