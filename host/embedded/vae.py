"""SANA's autoencoders without ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...model_loaders.vae import LoadedVae
from ...networks import precision
from ...networks.accelerated import set_mode
from ...networks.autoencoder import Autoencoder, use_fast_autoencoder
from ...networks.latent_spaces import VaeSpec
from ...networks.memory import is_out_of_memory
from . import progress
from .devices import default_device, fits_free_memory, move_to_device, prepare, put_all_away


class _Run:
    """What this host lends to one pass: networks.autoencoder.Run."""

    output, output_dtype = torch.device("cpu"), torch.float32

    def __init__(self, vae: Vae, what: str):
        self.vae, self.device, self.dtype, self.what = vae, vae.device, vae.dtype, what
        self.bar: Any = None

    def report(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = progress.bar(total, self.what)
        self.bar.update(done - self.bar.n)

    def make_room(self, needed: int) -> None:
        move_to_device(self.device, self.vae.autoencoder.module, room=needed)

    def fits(self, needed: int) -> bool:
        return self.device.type != "cuda" or needed <= torch.cuda.get_device_properties(self.device).total_memory

    def has_room(self, needed: int) -> bool:
        return fits_free_memory(self.device, needed)

    def ran_out_of_memory(self, error: Exception) -> bool:
        return is_out_of_memory(error)

    def free_memory(self) -> None:
        put_all_away(self.vae.autoencoder.module)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@dataclass(frozen=True)
class Vae:
    """VAE: an autoencoder between LATENTs and images [B, H, W, 3] or videos [B, F, H, W, 3] in [0, 1]."""

    autoencoder: Autoencoder
    dtype: torch.dtype
    device: torch.device

    @property
    def spec(self) -> VaeSpec:
        return self.autoencoder.spec

    def compiled(self, mode: str) -> Vae:
        """The same VAE with the decoder in a mode of Sana Compile."""
        return replace(self, autoencoder=self.autoencoder.compiled(mode, self.device))

    @contextmanager
    def _run(self, what: str):
        run = _Run(self, what)
        try:
            yield run
        finally:
            run.close()

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        with self._run("decoding") as run:
            return self.autoencoder.decode(samples, run)

    def frames(self, samples: torch.Tensor) -> Iterator[torch.Tensor]:
        """The frames of one video after another, a few at a time: [n, H, W, 3]."""
        with self._run("decoding") as run:
            yield from self.autoencoder.frames(samples, run)

    def stream(self, blocks: Iterator[torch.Tensor], total: int) -> Iterator[torch.Tensor]:
        """The same of one video whose latents come in blocks; the blocks have a progress bar of their own."""
        run = _Run(self, "decoding")
        run.report = lambda done, total: None  # type: ignore[method-assign]
        yield from self.autoencoder.stream(blocks, total, run)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with self._run("encoding") as run:
            return self.autoencoder.encode(pixels, run)


def build_vae(loaded: LoadedVae, weight_dtype: str) -> Vae:
    wanted = precision.parse_weight_dtype(weight_dtype, precision.VAE_DTYPES)
    device = default_device()
    compute = prepare(loaded, wanted, device, loaded.spec.name)
    autoencoder = Autoencoder(use_fast_autoencoder(loaded.module), loaded.spec)
    return Vae(autoencoder.compiled(set_mode(), device), compute, device)
