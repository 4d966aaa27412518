"""DC-AE as a ComfyUI VAE."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import comfy.model_management
import comfy.sd
import torch

from ...model_loaders import dtypes
from ...model_loaders.vae import LoadedVae
from .modules import adopt, patcher_class

WORKING_DTYPES = [torch.bfloat16, torch.float32]
"""Never float16: it overflows in DC-AE and gives black or grey pictures."""


class SanaAutoencoder(torch.nn.Module):
    """An autoencoder in the interface that comfy's VAE calls; latents are the transformer's."""

    def __init__(self, loaded: LoadedVae):
        super().__init__()
        self.autoencoder = loaded.module
        self.spec = loaded.spec

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [-1, 1] to [B, C, H / ratio, W / ratio]."""
        return self.autoencoder.encode(pixels, return_dict=False)[0] * self.spec.scale

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] to [B, 3, h * ratio, w * ratio] in about [-1, 1]."""
        return self.autoencoder.decode(samples / self.spec.scale, return_dict=False)[0]


class SanaVAE(comfy.sd.VAE):
    """comfy's VAE around an autoencoder that did not come from one of its own files."""

    def __init__(self, loaded: LoadedVae, dtype: torch.dtype, device: torch.device):
        with _quiet_about_missing_weights():
            super().__init__(sd={})
        spec = loaded.spec
        self.first_stage_model = SanaAutoencoder(loaded).eval()
        self.latent_channels = spec.latent_channels
        self.downscale_ratio = self.upscale_ratio = spec.spatial_ratio
        self.working_dtypes = WORKING_DTYPES
        self.memory_used_encode = lambda shape, dtype: _memory(spec, shape[2] * shape[3], dtype)
        self.memory_used_decode = lambda shape, dtype: _memory(spec, shape[2] * shape[3] * spec.spatial_ratio**2, dtype)
        self.device, self.vae_dtype = device, dtype
        self.output_device = comfy.model_management.intermediate_device()
        offload_device = comfy.model_management.vae_offload_device()
        self.patcher = patcher_class()(self.first_stage_model, load_device=device, offload_device=offload_device)
        self.size = comfy.model_management.module_size(self.first_stage_model)

    def decode(self, samples_in, *args, **kwargs):
        self._check_channels(samples_in)
        return super().decode(samples_in, *args, **kwargs)

    def decode_tiled(self, samples, *args, **kwargs):
        self._check_channels(samples)
        return super().decode_tiled(samples, *args, **kwargs)

    def _check_channels(self, samples):
        if samples.shape[1] != self.latent_channels:
            raise ValueError(
                f"the latent has {samples.shape[1]} channels and this VAE (DC-AE) takes {self.latent_channels}: "
                "decode it with the VAE of the model that made it"
            )


def _memory(spec, pixels: int, dtype: torch.dtype) -> int:
    """Bytes of the widest stage at the picture's size: about 9 maps of 2 * widest channels at a quarter of it."""
    return int(pixels * spec.widest * 4.5 * comfy.model_management.dtype_size(dtype))


def build_vae(loaded: LoadedVae, weight_dtype: str) -> SanaVAE:
    """A comfy VAE around a loaded autoencoder, computing in bfloat16 or float32."""
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.VAE_DTYPES)
    device = comfy.model_management.vae_device()
    compute = torch.float32 if wanted == torch.float32 else comfy.model_management.vae_dtype(device, WORKING_DTYPES)
    if compute not in WORKING_DTYPES:
        compute = torch.float32
    adopt(loaded.module, wanted, compute)
    return SanaVAE(loaded, compute, device)


@contextmanager
def _quiet_about_missing_weights():
    """comfy's VAE sets its defaults and then warns that no weights were given; ours come afterwards."""

    def other(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)
