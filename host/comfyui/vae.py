"""SANA's autoencoders as ComfyUI VAEs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ...model_loaders.quantised.formats import set_values
from ...model_loaders.vae import LoadedVae, load_vae
from ...networks import precision, streaming
from ...networks.accelerated import set_mode
from ...networks.autoencoder import (
    IMAGE_TILE,
    VIDEO_TILE,
    Autoencoder,
    crop_to_cells,
    from_autoencoder,
    to_autoencoder,
    use_fast_autoencoder,
)
from ...networks.latent_spaces import LTX2, WAN, VaeSpec, space_of
from ...networks.memory import is_out_of_memory, vae_memory
from ..errors import spoken
from . import previews
from .modules import log_compute_dtype, patcher_class, set_reload, use_comfy_ops, uses_bf16

WORKING_DTYPES = [torch.bfloat16, torch.float32]
"""Never float16: it overflows in DC-AE and gives black or grey images."""


class _DefaultsAreSet(Exception):
    """Ends comfy's VAE.__init__ once it has set the attributes that every VAE has."""


class _NoWeights(dict):
    """Weights for comfy's VAE.__init__, which sets its defaults and then selects a model by the weights' keys.

    Our model is loaded already. With an empty dict comfy would warn that no weights were found.
    """

    def __init__(self, vae: comfy.sd.VAE):
        super().__init__()
        self.vae = vae

    def __contains__(self, key) -> bool:
        if hasattr(self.vae, "process_output"):
            raise _DefaultsAreSet
        return False


class SanaAutoencoder(torch.nn.Module):
    """An autoencoder in the interface of comfy's first_stage_model; latents are a LATENT's.

    SanaVAE goes through networks.autoencoder; encode and decode are for nodes that take first_stage_model itself.
    """

    def __init__(self, loaded: LoadedVae):
        super().__init__()
        self.autoencoder = loaded.module
        self.spec = loaded.spec

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W], or [B, 3, F, H, W] of a video, in [-1, 1] to a LATENT's samples."""
        raw = self.autoencoder.encode(pixels, return_dict=False)[0]
        return from_autoencoder(self.spec, raw if isinstance(raw, torch.Tensor) else raw.mode())

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """The inverse: pixels in about [-1, 1]."""
        return self.autoencoder.decode(to_autoencoder(self.spec, samples), return_dict=False)[0]


class _Run:
    """What ComfyUI lends to one pass: networks.autoencoder.Run."""

    def __init__(self, vae: SanaVAE):
        self.vae, self.device, self.dtype, self.output = vae, vae.device, vae.vae_dtype, vae.output_device
        # ComfyUI 0.33 can keep images and latents in half precision; before, they were float32
        self.output_dtype = vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32
        self.bar: comfy.utils.ProgressBar | None = None

    def report(self, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar = self.bar or comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)

    def make_room(self, needed: int) -> None:
        comfy.model_management.load_models_gpu([self.vae.patcher], memory_required=needed)

    def fits(self, needed: int) -> bool:
        return needed <= comfy.model_management.get_total_memory(self.device)

    def has_room(self, needed: int) -> bool:
        return needed <= comfy.model_management.get_free_memory(self.device)

    def ran_out_of_memory(self, error: Exception) -> bool:
        # ComfyUI 0.33 clears the driver's own error; before, it knew PyTorch's alone
        is_oom = getattr(comfy.model_management, "is_oom", is_out_of_memory)
        return is_oom(error) or is_out_of_memory(error)

    def free_memory(self) -> None:
        comfy.model_management.soft_empty_cache()


def _on_device(device: torch.device) -> AbstractContextManager:
    """ComfyUI 0.33 knows several cards, and kernels of its layers run on the current one; before, there was one."""
    context = getattr(comfy.model_management, "cuda_device_context", None)
    return context(device) if context else nullcontext()


class SanaVAE(comfy.sd.VAE):
    """comfy's VAE around an autoencoder that did not come from a file that comfy reads.

    ``sana_mode``: a mode of Sana Compile; ``sana_coder``: what it gives for the module, once there is one.
    """

    sana_mode: str
    sana_coder: Autoencoder | None

    def __init__(self, loaded: LoadedVae, dtype: torch.dtype, device: torch.device, disable_dynamic: bool = False):
        with suppress(_DefaultsAreSet):
            super().__init__(sd=_NoWeights(self))
        spec = self.sana_spec = loaded.spec
        self.sana_mode, self.sana_coder = set_mode(), None
        self.first_stage_model = SanaAutoencoder(loaded).eval()
        self.latent_channels = spec.latent_channels
        self.working_dtypes = WORKING_DTYPES
        memory = vae_memory(loaded.module, spec)
        self.memory_used_encode = lambda shape, dtype: memory.encode(shape, dtype.itemsize)
        self.memory_used_decode = lambda shape, dtype: memory.decode(shape, dtype.itemsize)
        self.device, self.vae_dtype = device, dtype
        self.output_device = comfy.model_management.intermediate_device()
        offload_device = comfy.model_management.vae_offload_device()
        make_patcher = patcher_class(not disable_dynamic)
        self.patcher = make_patcher(self.first_stage_model, load_device=device, offload_device=offload_device)
        self.size = comfy.model_management.module_size(self.first_stage_model)
        self._set_ratios(spec)

    @property
    def sana_autoencoder(self) -> Autoencoder:
        """Of the module that the VAE has now: SelectVAEDevice of ComfyUI 0.33 gives a copy its own."""
        module = self.first_stage_model.autoencoder
        if self.sana_coder is None or self.sana_coder.module is not module:
            self.sana_coder = Autoencoder(module, self.sana_spec).compiled(self.sana_mode, self.device)
        return self.sana_coder

    def _set_ratios(self, spec: VaeSpec) -> None:
        """Pixels and frames per latent cell, as core nodes read them."""
        self.downscale_ratio: Any = spec.spatial_ratio
        self.upscale_ratio: Any = spec.spatial_ratio
        if spec.is_video:
            sides = (spec.spatial_ratio, spec.spatial_ratio)
            self.latent_dim = 3
            self.upscale_index_formula = self.downscale_index_formula = (spec.temporal_ratio, *sides)
            self.upscale_ratio = (lambda n: max(0, spec.frames(n)), *sides)
            self.downscale_ratio = (lambda n: max(0, spec.latent_frames(n)), *sides)

    @spoken
    def decode(self, samples_in, *args, **kwargs):
        """A LATENT's samples to images [B, H, W, 3], or videos [B, F, H, W, 3], in [0, 1].

        What else ComfyUI may pass (``vae_options``) is for other autoencoders.
        """
        with _on_device(self.device):
            return self.sana_autoencoder.decode(self._without_time(samples_in), _Run(self))

    @spoken
    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """The same in tiles of ``tile_x`` latent cells. Time needs no tiles: videos are decoded in pieces.

        The tiles of an image are exact, so ``overlap`` is used for videos only.
        """
        cell = self.sana_spec.spatial_ratio
        tile, overlap = self._tile(tile_x, tile_y, cell), overlap and overlap * cell
        with _on_device(self.device):
            return self.sana_autoencoder.decode(self._without_time(samples), _Run(self), tile, overlap)

    @spoken
    def encode(self, pixel_samples):
        """Images [B, H, W, 3] to [B, C, h, w]; frames of one video, or [B, F, H, W, 3], to [B, C, f, h, w]."""
        with _on_device(self.device):
            return self.sana_autoencoder.encode(pixel_samples, _Run(self))

    @spoken
    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """The same in tiles of ``tile_x`` pixels; as in :meth:`decode_tiled`."""
        with _on_device(self.device):
            return self.sana_autoencoder.encode(pixel_samples, _Run(self), self._tile(tile_x, tile_y, 1), overlap)

    def _without_time(self, samples: torch.Tensor) -> torch.Tensor:
        """A LATENT of one frame as that of an image, where this VAE is for images: so ComfyUI's own take it too."""
        one_frame = samples.ndim == 5 and samples.shape[2] == 1 and not self.sana_spec.is_video
        return samples[:, :, 0] if one_frame else samples

    def _tile(self, tile_x: int | None, tile_y: int | None, cell: int) -> int:
        """Pixels on a side of a tile, from a node's two sizes in cells of so many."""
        usual = VIDEO_TILE if self.sana_spec.is_video else IMAGE_TILE
        return min((side * cell for side in (tile_x, tile_y) if side), default=usual)

    def frames(self, samples) -> Iterator[torch.Tensor]:
        """The frames of one video after another, a few at a time: [n, H, W, 3] in [0, 1]."""
        yield from self._each_on_device(self.sana_autoencoder.frames(samples, _Run(self)))

    def stream(self, blocks: Iterator[torch.Tensor], total: int) -> Iterator[torch.Tensor]:
        """The same of one video whose latents come in blocks."""
        yield from self._each_on_device(self.sana_autoencoder.stream(blocks, total, _Run(self)))

    def _each_on_device(self, pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        return streaming.each_within(lambda: _on_device(self.device), pieces)

    def vae_encode_crop_pixels(self, pixels):
        """Sides are cropped to whole latent cells around the middle; ValueError where nothing is left."""
        return crop_to_cells(self.sana_spec, pixels[..., :3])

    def get_sd(self):
        """The autoencoder's weights in diffusers' naming, for VAESave."""
        return self.first_stage_model.autoencoder.state_dict()


def build_vae(loaded: LoadedVae, weight_dtype: str, disable_dynamic: bool = False) -> SanaVAE:
    """A comfy VAE around a loaded autoencoder, computing in bfloat16 or float32.

    A video autoencoder stored in float32 computes in float32, as in diffusers' SANA-Video, unless a flag of
    ComfyUI sets another dtype.
    """
    wanted = precision.parse_weight_dtype(weight_dtype, precision.VAE_DTYPES)
    device = comfy.model_management.vae_device()
    compute = _compute_dtype(loaded, wanted, device)
    set_values(loaded.module, loaded.quantised, precision.floating(wanted) or compute)
    use_fast_autoencoder(use_comfy_ops(loaded.module, wanted, compute, called_whole=False))
    reason = ["because of its weights and ComfyUI's flags, float16 aside"] if loaded.spec.is_video else []
    log_compute_dtype(f"SANA's {loaded.spec.name}", compute, *reason)
    vae = SanaVAE(loaded, compute, device, disable_dynamic)
    set_reload(vae.patcher, _reload, loaded.path, weight_dtype)
    previews.remember(vae)
    return vae


def _reload(path, weight_dtype: str, disable_dynamic: bool = False):
    """The patcher of build_vae of the file once more."""
    return build_vae(load_vae(path), weight_dtype, disable_dynamic).patcher


def _compute_dtype(loaded: LoadedVae, wanted: torch.dtype | None, device: torch.device) -> torch.dtype:
    stored = precision.stored_dtype(loaded.module, wanted)
    keeps_float32 = loaded.spec.is_video and stored == torch.float32
    if wanted == torch.float32:
        return torch.float32
    allowed = [torch.float32] if keeps_float32 else WORKING_DTYPES
    compute = comfy.model_management.vae_dtype(device, allowed)
    if compute == torch.bfloat16:
        return compute
    if compute == torch.float16:  # --fp16-vae
        stored = torch.float32 if keeps_float32 else torch.bfloat16
    return precision.compute_dtype(stored, uses_bf16(device, "fp32_vae"))


def spec_of(vae) -> VaeSpec:
    """The VaeSpec of a VAE of ours, or of a core one with the latents of Wan 2.1 or LTX-2; else ValueError."""
    if isinstance(vae, SanaVAE):
        return vae.sana_spec
    space = space_of(vae.latent_channels, vae.latent_dim == 3)
    if space not in (WAN, LTX2):
        raise ValueError(
            f"this VAE has {vae.latent_channels} latent channels; SANA-Video takes the Wan 2.1 VAE (16) or the LTX-2 "
            "video VAE (128): load one with Sana Load VAE or VAELoader"
        )
    return VaeSpec(space, vae.latent_channels, vae.spacial_compression_decode(), vae.temporal_compression_decode())


def decode_frames(vae, samples) -> Iterator[torch.Tensor]:
    """A video LATENT's frames in order; a core VAE gives one whole video at a time."""
    if isinstance(vae, SanaVAE):
        yield from vae.frames(samples)
        return
    for one in samples.split(1):
        yield vae.decode(one).flatten(0, -4)


def decode_stream(vae, blocks: Iterator[torch.Tensor], total: int) -> Iterator[torch.Tensor]:
    """The frames of one video whose latents come in blocks; ValueError for a VAE of ComfyUI's own."""
    if not isinstance(vae, SanaVAE):
        raise ValueError("ComfyUI's own VAE decodes a whole video at a time: load the VAE with Sana Load VAE")
    return vae.stream(blocks, total)
