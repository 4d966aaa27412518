"""ControlNets without ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...media.pictures import cover
from ...model_loaders import dtypes
from ...model_loaders.controlnet import (
    ControlNetSpec,
    LoadedControlNet,
    check_latent,
    check_vae,
    control_residuals,
)
from ...samplers.trigflow import TrigFlow, flow_time
from .devices import adapted, device
from .vae import Vae


@dataclass(frozen=True)
class ControlNet:
    """CONTROL_NET: a network and where it computes."""

    module: torch.nn.Module
    spec: ControlNetSpec
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class AppliedControl:
    """A ControlNet with the pictures [B, H, W, C] that lead it, in a conditioning.

    ``start`` and ``end``: the part of the run, 0 to 1, in which it acts.
    """

    net: ControlNet
    images: torch.Tensor
    vae: Vae | None
    strength: float
    start: float
    end: float

    def hint(self, samples: torch.Tensor) -> torch.Tensor:
        """The latent of its pictures at the size of the latent that is drawn."""
        check_latent(self.net.spec, samples.shape)
        height, width = (side * self.vae.spec.spatial_ratio for side in samples.shape[-2:])
        pictures = torch.stack([cover(image, width, height) for image in self.images])
        return self.vae.encode(pictures).to(self.net.device, self.net.dtype)

    def residuals(self, sampling: torch.nn.Module, x, sigma, context, hint) -> list:
        """What it adds to the transformer at x_t, noise level ``sigma`` [B]; nothing outside its part of the run."""
        first, last = sampling.percent_to_sigma(self.start), sampling.percent_to_sigma(self.end)
        if not last <= sigma[0] <= first:
            return []
        time = flow_time(sigma) if isinstance(sampling, TrigFlow) else sampling.timestep(sigma)
        seen = sampling.calculate_input(sigma, x).to(self.net.dtype)
        parts = control_residuals(self.net.module, seen, time.float(), context.to(self.net.dtype), hint)
        return [part * self.strength for part in parts]


def build_controlnet(loaded: LoadedControlNet, weight_dtype: str) -> ControlNet:
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.TRANSFORMER_DTYPES)
    place = device()
    return ControlNet(loaded.module, loaded.spec, adapted(loaded.module, wanted, place), place)


def apply(conditionings: list[list], applied: AppliedControl) -> list[list]:
    """The conditionings with one more ControlNet each."""
    vae = applied.vae.spec if applied.vae else None
    check_vae(applied.net.spec, vae, vae and vae.latent_channels, bool(vae and vae.is_video))
    return [
        [[states, {**said, "control": (*said.get("control", ()), applied)}] for states, said in conditioning]
        for conditioning in conditionings
    ]
