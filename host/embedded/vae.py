"""SANA's autoencoders without ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...model_loaders import dtypes, streaming
from ...model_loaders.dc_ae_windows import WINDOW, Windows
from ...model_loaders.vae import LoadedVae, VaeSpec, cropped, from_autoencoder, to_autoencoder
from . import progress
from .devices import adapted, bring, device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vae:
    """VAE: an autoencoder between LATENTs and pictures [B, H, W, 3] or videos [B, F, H, W, 3] in [0, 1]."""

    module: torch.nn.Module
    spec: VaeSpec
    dtype: torch.dtype
    device: torch.device

    @torch.no_grad()
    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        raw = to_autoencoder(self.spec, samples)
        if not self.spec.is_video:
            return _picture(self._fitting("decode", raw)).movedim(1, -1)
        return streaming.gather(self.spec, raw, self._frames, "cpu")

    def frames(self, samples: torch.Tensor) -> Iterator[torch.Tensor]:
        """The frames of one video after another, a few at a time: [n, H, W, 3]."""
        raw = to_autoencoder(self.spec, samples)
        for one in raw.split(1):
            yield from self._frames(one)

    def _frames(self, raw: torch.Tensor) -> Iterator[torch.Tensor]:
        bring(self.device, self.module)
        with progress.bar(raw.shape[2], "decoding") as bar:
            for piece in streaming.decode_pieces(self.module, self.spec, raw, self.device, self.dtype):
                yield _picture(piece[0]).movedim(0, -1)
                bar.update(min(streaming.PIECE, bar.total - bar.n))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Sides that the ratio does not divide are cropped in the middle, as in ComfyUI.

        A video VAE takes pictures [F, H, W, 3] for the frames of one video.
        """
        bring(self.device, self.module)
        pixels = cropped(self.spec, pixels[..., :3])
        if self.spec.is_video:
            videos = pixels if pixels.ndim == 5 else pixels[None]
            raw = streaming.encode_pieces(self.module, self.spec, videos, self.device, self.dtype)
        else:
            raw = self._fitting("encode", pixels.movedim(-1, 1) * 2.0 - 1.0)
        return from_autoencoder(self.spec, raw.to("cpu", torch.float32))

    def _fitting(self, half: str, given: torch.Tensor) -> torch.Tensor:
        """A picture autoencoder's ``encode`` or ``decode``, in windows where the whole does not fit into memory."""
        bring(self.device, self.module)
        try:
            return getattr(self.module, half)(given.to(self.device, self.dtype), return_dict=False)[0]
        except torch.cuda.OutOfMemoryError:
            logger.warning("Out of memory: the picture is %sd once more, in windows of %d pixels.", half, WINDOW)
        torch.cuda.empty_cache()
        with progress.bar(1, f"{half[:-1]}ing in windows") as bar:

            def report(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return getattr(Windows(WINDOW, self.device, self.dtype, report), half)(self.module, given)


def _picture(pixels: torch.Tensor) -> torch.Tensor:
    """[-1, 1] on any device to [0, 1] in float32 on the CPU."""
    return pixels.to("cpu", torch.float32, copy=True).add_(1.0).div_(2.0).clamp_(0.0, 1.0)


def build_vae(loaded: LoadedVae, weight_dtype: str) -> Vae:
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.VAE_DTYPES)
    compute = adapted(loaded.module, wanted, device())
    return Vae(loaded.module, loaded.spec, compute, device())
