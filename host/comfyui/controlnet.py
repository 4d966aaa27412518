"""SANA's ControlNets as ComfyUI's CONTROL_NET."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import comfy.model_management
import torch

from ...media.pictures import cover
from ...model_loaders.controlnet import LoadedControlNet
from ...model_loaders.quantised.formats import set_values
from ...networks import precision
from ...networks.controlnet import acts_at, check_latent, check_vae, control_residuals, control_time, hint_latent
from ...networks.fast_transformer import use_fast_transformer
from ..errors import spoken
from .model import SanaLatentFormat, network_dtypes
from .modules import loads_dynamically, use_comfy_ops


class ControlForward(torch.nn.Module):
    """A SanaControlNetModel, called as ComfyUI calls its control models."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = module, dtype

    def forward(self, x, hint, timesteps, context):
        return {"input": control_residuals(self.network, x, timesteps, context, hint)}


class SanaControlNet(comfy.controlnet.ControlNet):
    """comfy's ControlNet, whose hint is the DC-AE latent of an image (SanaControlNetPipeline)."""

    def __init__(self, control_model, spec, load_device, manual_cast_dtype):
        super().__init__(
            control_model,
            load_device=load_device,
            manual_cast_dtype=manual_cast_dtype,
            compression_ratio=1,
            latent_format=SanaLatentFormat(),
            extra_conds=[],
        )
        self.spec, self.hint_shape = spec, None

    @spoken
    def set_cond_hint(self, cond_hint, strength=1.0, timestep_percent_range=(0.0, 1.0), vae=None, extra_concat=()):
        video = getattr(vae, "latent_dim", 2) == 3
        check_vae(self.spec, vae, getattr(vae, "latent_channels", None), video)
        return super().set_cond_hint(cond_hint, strength, timestep_percent_range, vae, list(extra_concat))

    @spoken
    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        """What the ControlNets before this one add, and in its part of the run what it adds itself.

        comfy's own is not called: it resizes the image by the nearest pixel and rounds the time to the dtype
        that is computed in, in bfloat16 by up to 2 of 1000.
        """
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        check_latent(self.spec, x_noisy.shape)
        sampling, dtype = self.model_sampling_current, self.manual_cast_dtype or self.control_model.dtype
        if not acts_at(sampling, t, *self.timestep_range):
            return before
        context = cond.get("crossattn_controlnet", cond["c_crossattn"])
        added = self.control_model(
            x=sampling.calculate_input(t, x_noisy).to(dtype),
            hint=self._hint(x_noisy, batched_number).to(x_noisy.device, dtype),
            timesteps=control_time(sampling, t).float(),
            context=context.to(x_noisy.device, dtype),
        )
        return self.control_merge(added, before, output_dtype=None)

    def _hint(self, x_noisy, batched_number: int) -> torch.Tensor:
        """The latent of its images for ``batched_number`` prompts at once; encoded once in a run for each size."""
        shape = (x_noisy.shape[0] // batched_number, *x_noisy.shape[1:])
        if self.cond_hint is None or self.hint_shape != shape:
            images, ratio = self.cond_hint_original.movedim(1, -1), self.vae.spacial_compression_encode()
            in_use = comfy.model_management.loaded_models(only_currently_used=True)
            hint = hint_latent(self.spec, images, shape, ratio, cover, self.vae.encode)
            self.cond_hint: Any = hint.to(x_noisy.device)  # once: at each call the program would wait
            self.hint_shape = shape
            comfy.model_management.load_models_gpu(in_use)
        return self.cond_hint if len(self.cond_hint) == 1 else self.cond_hint.repeat(batched_number, 1, 1, 1)

    def copy(self):
        made = SanaControlNet(None, self.spec, self.load_device, self.manual_cast_dtype)
        made.control_model, made.control_model_wrapped = self.control_model, self.control_model_wrapped
        self.copy_to(made)
        return made


def build_controlnet(loaded: LoadedControlNet, weight_dtype: str) -> SanaControlNet:
    """A CONTROL_NET around a loaded ControlNet, in the dtypes that ComfyUI chooses for the device."""
    wanted = precision.parse_weight_dtype(weight_dtype, precision.TRANSFORMER_DTYPES)
    device = comfy.model_management.get_torch_device()
    stored, cast = network_dtypes(loaded.module, wanted, device, float16=True)
    set_values(loaded.module, loaded.quantised, precision.floating(wanted) or cast or stored)
    module = use_comfy_ops(loaded.module, wanted, cast or stored, dynamic=loads_dynamically(device))
    network = use_fast_transformer(module, loaded.spec.clips)
    return SanaControlNet(ControlForward(network, stored).eval(), loaded.spec, device, cast)
