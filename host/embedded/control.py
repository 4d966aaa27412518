"""ControlNets without ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...media.pictures import cover
from ...model_loaders.controlnet import LoadedControlNet
from ...networks import precision
from ...networks.controlnet import (
    ControlNetSpec,
    acts_at,
    check_vae,
    control_residuals,
    control_time,
    hint_latent,
)
from ...networks.fast_transformer import use_fast_transformer
from .devices import default_device, prepare
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
    """A ControlNet with the images [B, H, W, C] that lead it, in a conditioning.

    ``start`` and ``end``: the part of the run, 0 to 1, in which it acts.
    """

    net: ControlNet
    images: torch.Tensor
    vae: Vae | None
    strength: float
    start: float
    end: float

    def hint(self, samples: torch.Tensor) -> torch.Tensor:
        """The latent of its images at the size of the latent that is sampled."""
        assert self.vae is not None, "check_vae refuses a ControlNet without a VAE"
        ratio, encode = self.vae.spec.spatial_ratio, self.vae.encode
        return hint_latent(self.net.spec, self.images, samples.shape, ratio, cover, encode).to(
            self.net.device, self.net.dtype
        )

    def residuals(self, sampling: torch.nn.Module, x, sigma, context, hint) -> list:
        """What it adds to the transformer at x_t, noise level ``sigma`` [B]; nothing outside its part of the run."""
        if not acts_at(sampling, sigma, sampling.percent_to_sigma(self.start), sampling.percent_to_sigma(self.end)):
            return []
        time = control_time(sampling, sigma)
        scaled = sampling.calculate_input(sigma, x).to(self.net.dtype)
        parts = control_residuals(self.net.module, scaled, time.float(), context.to(self.net.dtype), hint)
        return [part * self.strength for part in parts]


def build_controlnet(loaded: LoadedControlNet, weight_dtype: str) -> ControlNet:
    wanted = precision.parse_weight_dtype(weight_dtype, precision.TRANSFORMER_DTYPES)
    device = default_device()
    use_fast_transformer(loaded.module, loaded.spec.clips)
    return ControlNet(loaded.module, loaded.spec, prepare(loaded, wanted, device, "SANA's ControlNet"), device)


def apply(conditionings: list[list], applied: AppliedControl) -> list[list]:
    """The conditionings with one more ControlNet each."""
    vae = applied.vae.spec if applied.vae else None
    check_vae(applied.net.spec, vae, vae.latent_channels if vae else None, bool(vae and vae.is_video))
    return [
        [[states, {**options, "control": (*options.get("control", ()), applied)}] for states, options in conditioning]
        for conditioning in conditionings
    ]
