"""SANA's ControlNets as ComfyUI's CONTROL_NET."""

from __future__ import annotations

import comfy.controlnet
import comfy.model_management
import torch

from ...media.pictures import cover
from ...model_loaders.controlnet import LoadedControlNet
from ...model_loaders.quantised.formats import set_values
from ...networks import precision
from ...networks.controlnet import check_latent, check_vae, control_residuals, control_time
from ...networks.fast_transformer import use_fast_layers
from ...samplers.trigflow import TrigFlow
from .model import SanaLatentFormat, network_dtypes
from .modules import use_comfy_ops


class ControlForward(torch.nn.Module):
    """A SanaControlNetModel, called as ComfyUI calls its control models."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = module, dtype

    def forward(self, x, hint, timesteps, context):
        return {"input": control_residuals(self.network, x, timesteps, context, hint)}


class _SprintAsFlow:
    """SANA-Sprint's angles for a ControlNet that was made for flow matching."""

    def __init__(self, sampling: TrigFlow):
        self.sampling, self.calculate_input = sampling, sampling.calculate_input

    def timestep(self, sigma):
        return control_time(self.sampling, sigma)


class SanaControlNet(comfy.controlnet.ControlNet):
    """comfy's ControlNet, led by the DC-AE latent of an image (SanaControlNetPipeline)."""

    def __init__(self, control_model, spec, load_device, manual_cast_dtype):
        super().__init__(
            control_model,
            load_device=load_device,
            manual_cast_dtype=manual_cast_dtype,
            compression_ratio=1,
            latent_format=SanaLatentFormat(),
            extra_conds=[],
        )
        self.spec = spec

    def set_cond_hint(self, cond_hint, strength=1.0, timestep_percent_range=(0.0, 1.0), vae=None, extra_concat=()):
        video = getattr(vae, "latent_dim", 2) == 3
        check_vae(self.spec, vae, getattr(vae, "latent_channels", None), video)
        return super().set_cond_hint(cond_hint, strength, timestep_percent_range, vae, list(extra_concat))

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        if isinstance(model.model_sampling, TrigFlow):
            self.model_sampling_current = _SprintAsFlow(model.model_sampling)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        check_latent(self.spec, x_noisy.shape)
        first, last = self.timestep_range or (float("inf"), 0.0)
        if last <= t[0] <= first and (self.cond_hint is None or self.cond_hint.shape[-2:] != x_noisy.shape[-2:]):
            self.cond_hint = self._encoded(x_noisy)
        return super().get_control(x_noisy, t, cond, batched_number, transformer_options)

    def _encoded(self, x_noisy) -> torch.Tensor:
        """The latent of the image at the size that is sampled; comfy's own would resize by the nearest pixel."""
        ratio = self.vae.spacial_compression_encode()
        height, width = (side * ratio for side in x_noisy.shape[-2:])
        images = torch.stack([cover(image, width, height) for image in self.cond_hint_original.movedim(1, -1)])
        in_use = comfy.model_management.loaded_models(only_currently_used=True)
        hint = self.vae.encode(images)
        comfy.model_management.load_models_gpu(in_use)
        return hint.to(x_noisy.device, self.manual_cast_dtype or self.control_model.dtype)

    def copy(self):
        made = SanaControlNet(None, self.spec, self.load_device, self.manual_cast_dtype)
        made.control_model, made.control_model_wrapped = self.control_model, self.control_model_wrapped
        self.copy_to(made)
        return made


def build_controlnet(loaded: LoadedControlNet, weight_dtype: str) -> SanaControlNet:
    """A CONTROL_NET around a loaded ControlNet, in the dtypes that ComfyUI chooses for the device."""
    wanted = precision.parse_weight_dtype(weight_dtype, precision.TRANSFORMER_DTYPES)
    device = comfy.model_management.get_torch_device()
    stored, cast = network_dtypes(loaded.module, wanted, device)
    set_values(loaded.module, loaded.quantised, precision.floating(wanted) or cast or stored)
    network = use_fast_layers(use_comfy_ops(loaded.module, wanted, cast or stored))
    return SanaControlNet(ControlForward(network, stored).eval(), loaded.spec, device, cast)
