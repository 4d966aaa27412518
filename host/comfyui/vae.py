"""SANA's autoencoders as ComfyUI VAEs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ...model_loaders import dtypes, streaming
from ...model_loaders.dc_ae_windows import WINDOW, Windows
from ...model_loaders.memory import vae_memory
from ...model_loaders.streaming import Tiles
from ...model_loaders.vae import (
    CHANNELS,
    LoadedVae,
    VaeSpec,
    cropped,
    frames_to_latent,
    from_autoencoder,
    latent_to_frames,
    to_autoencoder,
    wrong_latent,
)
from . import previews
from .modules import adopt, half_dtype, patcher_class, say_dtype

WORKING_DTYPES = [torch.bfloat16, torch.float32]
"""Never float16: it overflows in DC-AE and gives black or grey pictures."""

TILE, TILE_OVERLAP = 256, 64
"""Pixels of a window and of its overlap where a whole frame does not fit; as ComfyUI's own."""


class SanaAutoencoder(torch.nn.Module):
    """An autoencoder in the interface that comfy's VAE calls; latents are the transformer's."""

    def __init__(self, loaded: LoadedVae):
        super().__init__()
        self.autoencoder = loaded.module
        self.spec = loaded.spec

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [-1, 1] to [B, C, H / ratio, W / ratio]."""
        return from_autoencoder(self.spec, self.autoencoder.encode(pixels, return_dict=False)[0])

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] to [B, 3, h * ratio, w * ratio] in about [-1, 1]."""
        return self.autoencoder.decode(to_autoencoder(self.spec, samples), return_dict=False)[0]


class SanaVAE(comfy.sd.VAE):
    """comfy's VAE around an autoencoder that did not come from one of its own files."""

    def __init__(self, loaded: LoadedVae, dtype: torch.dtype, device: torch.device):
        with _quiet_about_missing_weights():
            super().__init__(sd={})
        spec = self.sana_spec = loaded.spec
        self.first_stage_model = SanaAutoencoder(loaded).eval()
        self.latent_channels = spec.latent_channels
        self.downscale_ratio = self.upscale_ratio = spec.spatial_ratio
        self.working_dtypes = WORKING_DTYPES
        memory = self.sana_memory = vae_memory(loaded.module, spec)
        self.memory_used_encode = lambda shape, dtype: memory.encode(shape, dtype.itemsize)
        self.memory_used_decode = lambda shape, dtype: memory.decode(shape, dtype.itemsize)
        self.device, self.vae_dtype = device, dtype
        self.output_device = comfy.model_management.intermediate_device()
        offload_device = comfy.model_management.vae_offload_device()
        self.patcher = patcher_class()(self.first_stage_model, load_device=device, offload_device=offload_device)
        self.size = comfy.model_management.module_size(self.first_stage_model)

    def decode(self, samples_in, *args, **kwargs):
        """comfy's, which falls back to ``decode_tiled_``; what the device cannot hold at all goes there at once."""
        self._check_channels(samples_in)
        if self._is_too_much(self.memory_used_decode((1, *samples_in.shape[1:]), self.vae_dtype)):
            return self.decode_tiled(samples_in)
        return super().decode(samples_in, *args, **kwargs)

    def encode(self, pixel_samples):
        """The same with ``encode_tiled_``."""
        rows, columns = pixel_samples.shape[1:3]
        if self._is_too_much(self.memory_used_encode((1, 3, rows, columns), self.vae_dtype)):
            return self.encode_tiled(pixel_samples)
        return super().encode(pixel_samples)

    def _is_too_much(self, needed: int) -> bool:
        return needed > comfy.model_management.get_total_memory(self.device)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """A LATENT's samples to pictures in windows of ``tile_x`` latent cells, to the same pixels.

        Windows are exact (dc_ae_windows.py), so ``overlap`` has nothing to do.
        """
        self._check_channels(samples)
        side = _side(tile_x, tile_y, self.sana_spec.spatial_ratio)
        sides = (s * self.sana_spec.spatial_ratio for s in samples.shape[-2:])
        self._load(self.sana_memory.decode_in_windows(*sides, side, self.vae_dtype.itemsize))
        return self.decode_tiled_(samples, tile_x, tile_y).movedim(1, -1)

    def decode_tiled_(self, samples, tile_x=None, tile_y=None, overlap=None):
        """[B, C, h, w] to [B, 3, H, W] in [0, 1]; comfy's ``decode`` falls back to it."""
        windows = self._windows(_side(tile_x, tile_y, self.sana_spec.spatial_ratio))
        pixels = windows.decode(self.first_stage_model.autoencoder, to_autoencoder(self.sana_spec, samples))
        return self.process_output(pixels.to(_output_dtype(self)))

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Pictures [B, H, W, 3] to latents in windows of ``tile_x`` pixels; as in :meth:`decode_tiled`."""
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        needed = self.sana_memory.encode_in_windows(*pixels.shape[-2:], _side(tile_x, tile_y), self.vae_dtype.itemsize)
        self._load(needed)
        return self.encode_tiled_(pixels, tile_x, tile_y)

    def encode_tiled_(self, pixel_samples, tile_x=None, tile_y=None, overlap=None):
        """[B, 3, H, W] in [0, 1] to [B, C, h, w]; comfy's ``encode`` falls back to it."""
        windows = self._windows(_side(tile_x, tile_y))
        raw = windows.encode(self.first_stage_model.autoencoder, self.process_input(pixel_samples))
        return from_autoencoder(self.sana_spec, raw).to(_output_dtype(self))

    def vae_encode_crop_pixels(self, pixels):
        """Sides that the ratio does not divide are cropped in the middle; ValueError where nothing is left."""
        return cropped(self.sana_spec, pixels[..., :3])

    def _load(self, needed: int) -> None:
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def _windows(self, side: int) -> Windows:
        bar = comfy.utils.ProgressBar(1)

        def report(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        return Windows(side, self.device, self.vae_dtype, report, self.output_device)

    def get_sd(self):
        """The autoencoder's weights in diffusers' naming, for VAESave."""
        return self.first_stage_model.autoencoder.state_dict()

    def _check_channels(self, samples):
        if samples.shape[1] != self.latent_channels:
            raise ValueError(wrong_latent(self.sana_spec, samples.shape))


def _side(tile_x: int | None, tile_y: int | None, cell: int = 1) -> int:
    """Pixels on a side of a window, from a node's two sizes in cells of so many."""
    return min((v * cell for v in (tile_x, tile_y) if v), default=WINDOW)


def _output_dtype(vae) -> torch.dtype:
    """ComfyUI 0.33 can keep pictures and latents in half precision; before, they were float32."""
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32


class SanaVideoVAE(SanaVAE):
    """A video autoencoder, run a few frames at a time: memory is theirs, and that of the finished video."""

    def __init__(self, loaded: LoadedVae, dtype: torch.dtype, device: torch.device):
        super().__init__(loaded, dtype, device)
        spec = loaded.spec
        self.latent_dim = 3
        self.upscale_index_formula = (spec.temporal_ratio, spec.spatial_ratio, spec.spatial_ratio)
        self.downscale_index_formula = self.upscale_index_formula
        self.upscale_ratio = (lambda n: max(0, latent_to_frames(spec, n)), *self.upscale_index_formula[1:])
        self.downscale_ratio = (lambda n: max(0, frames_to_latent(spec, n)), *self.upscale_index_formula[1:])

    def decode(self, samples_in, *args, **kwargs):
        """A LATENT's samples [B, C, f, h, w] to [B, F, H, W, 3] in [0, 1]."""
        return self._videos(samples_in, None)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """The same through windows of ``tile_x`` latent cells; time needs none, since it is streamed."""
        ratio = self.sana_spec.spatial_ratio
        size = min(v for v in (tile_x, tile_y, 1 << 20) if v) if tile_x or tile_y else TILE // ratio
        overlap = size // 4 if overlap is None else overlap
        return self._videos(samples, Tiles(max(2, size), min(overlap, size - 1)))

    def _videos(self, samples, tiles: Tiles | None):
        raw = to_autoencoder(self.sana_spec, samples)
        return streaming.gather(self.sana_spec, raw, lambda one: self._pieces(one, tiles), self.output_device)

    def frames(self, samples) -> Iterator[torch.Tensor]:
        """The frames of one video after another, a few at a time: [n, H, W, 3] in [0, 1]."""
        for one in to_autoencoder(self.sana_spec, samples).split(1):
            yield from self._pieces(one, None)

    def _pieces(self, raw, tiles: Tiles | None) -> Iterator[torch.Tensor]:
        """Frames of one video; where a whole frame does not fit into memory, once more from windows."""
        bar = comfy.utils.ProgressBar(raw.shape[2])
        done = 0
        for attempt in (tiles, tiles or self._fallback()):
            try:
                for place, piece in enumerate(self._run(raw, attempt, bar)):
                    if place >= done:
                        yield piece
                        done += 1
                return
            except comfy.model_management.OOM_EXCEPTION:
                if attempt is not None:
                    raise
                logging.warning("Out of memory while decoding; trying again in windows of %d pixels.", TILE)
            comfy.model_management.soft_empty_cache()

    def _fallback(self) -> Tiles:
        ratio = self.sana_spec.spatial_ratio
        return Tiles(max(2, TILE // ratio), max(1, TILE_OVERLAP // ratio))

    def _run(self, raw, tiles, bar) -> Iterator[torch.Tensor]:
        side = raw.shape if tiles is None else (*raw.shape[:3], *(min(s, tiles.size) for s in raw.shape[3:]))
        self._load(self.memory_used_decode(side, self.vae_dtype))
        module, shown = self.first_stage_model.autoencoder, 0
        for piece in streaming.decode_pieces(module, self.sana_spec, raw, self.device, self.vae_dtype, tiles):
            comfy.model_management.throw_exception_if_processing_interrupted()
            piece = piece[0].to(self.output_device, torch.float32, copy=True)
            yield self.process_output(piece).movedim(0, -1)
            shown = min(shown + streaming.PIECE, raw.shape[2])
            bar.update_absolute(shown)

    def encode(self, pixel_samples):
        """Frames [F, H, W, 3] of one video, or [B, F, H, W, 3], to [B, C, f, h, w]."""
        try:
            return self._latents(pixel_samples, None)
        except comfy.model_management.OOM_EXCEPTION:
            logging.warning("Out of memory while encoding; trying again in windows of %d pixels.", TILE)
        comfy.model_management.soft_empty_cache()
        return self._latents(pixel_samples, self._fallback())

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """The same through windows of ``tile_x`` pixels."""
        ratio = self.sana_spec.spatial_ratio
        size = max(2, min(v for v in (tile_x, tile_y, TILE) if v) // ratio)
        overlap = size // 4 if overlap is None else overlap // ratio
        return self._latents(pixel_samples, Tiles(size, min(overlap, size - 1)))

    def _latents(self, pixels, tiles: Tiles | None):
        videos = pixels if pixels.ndim == 5 else pixels[None]
        videos = cropped(self.sana_spec, videos[..., :3])
        size = max(videos.shape[2:4]) if tiles is None else tiles.size * self.sana_spec.spatial_ratio
        sides = (min(side, size) for side in videos.shape[2:4])
        self._load(self.memory_used_encode((*videos.shape[:2], *sides), self.vae_dtype))
        module = self.first_stage_model.autoencoder
        raw = streaming.encode_pieces(module, self.sana_spec, videos, self.device, self.vae_dtype, tiles)
        return from_autoencoder(self.sana_spec, raw.to(self.output_device, torch.float32))


def build_vae(loaded: LoadedVae, weight_dtype: str) -> SanaVAE:
    """A comfy VAE around a loaded autoencoder, computing in bfloat16 or float32.

    A video autoencoder stored in float32 computes in it, as diffusers' SANA-Video does, unless ComfyUI
    was started with a flag that says otherwise.
    """
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.VAE_DTYPES)
    device = comfy.model_management.vae_device()
    fine = loaded.spec.is_video and dtypes.stored_dtype(loaded.module, wanted) == torch.float32
    allowed = [torch.float32] if fine else WORKING_DTYPES
    compute = torch.float32 if wanted == torch.float32 else comfy.model_management.vae_dtype(device, allowed)
    if compute not in WORKING_DTYPES:  # --fp16-vae
        compute = torch.float32 if fine else half_dtype(device)
    adopt(loaded.module, wanted, compute)
    why = ["because of its weights and ComfyUI's flags, float16 aside"] if loaded.spec.is_video else []
    say_dtype(f"SANA's {loaded.spec.name}", compute, *why)
    if loaded.spec.is_video:
        return SanaVideoVAE(loaded, compute, device)
    vae = SanaVAE(loaded, compute, device)
    previews.remember(vae)
    return vae


def spec_of(vae) -> VaeSpec:
    """The VaeSpec of a VAE of ours, or of a core one with the latents of Wan 2.1 or LTX-2; else ValueError."""
    if isinstance(vae, SanaVAE):
        return vae.sana_spec
    family = CHANNELS.get(vae.latent_channels)
    if family == "dc-ae" or family is None or vae.latent_dim != 3:
        raise ValueError(
            f"this VAE has {vae.latent_channels} latent channels; SANA-Video takes the Wan 2.1 VAE (16) or the LTX-2 "
            "video VAE (128): load one with SanaLoadVAE or VAELoader"
        )
    return VaeSpec(family, vae.latent_channels, vae.spacial_compression_decode(), vae.temporal_compression_decode())


def decode_frames(vae, samples) -> Iterator[torch.Tensor]:
    """A video LATENT's frames in order; a core VAE gives one whole video at a time."""
    if isinstance(vae, SanaVideoVAE):
        yield from vae.frames(samples)
        return
    for one in samples.split(1):
        yield vae.decode(one).flatten(0, -4)


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
