"""Noise drawn as diffusers' pipelines draw it: one CPU generator for a whole run, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def seeded_generator(seed: int) -> torch.Generator:
    """The generator of a run. ``seed``: 0 to 2**64 - 1."""
    return torch.Generator("cpu").manual_seed(seed)


def draw(generator: torch.Generator, shape: Sequence[int]) -> torch.Tensor:
    """One float32 draw of N(0, 1) on the CPU (diffusers' randn_tensor with a CPU generator)."""
    return torch.randn(tuple(shape), generator=generator, device="cpu", dtype=torch.float32)


def continued_noise(generator: torch.Generator, shape: Sequence[int]) -> NoiseSampler:
    """Step noise for a sampler: the generator goes on where the initial noise left it.

    Returns ``noise_sampler(sigma, sigma_next)``, k-diffusion's interface, giving float32 tensors of
    ``shape`` on sigma's device.
    """

    def noise_sampler(sigma, sigma_next):
        return draw(generator, shape).to(sigma.device)

    return noise_sampler


def noise_after_start(seed: int, shape: Sequence[int]) -> NoiseSampler:
    """Step noise for a caller that drew the initial noise itself, from ``seed``.

    The first draw is made and thrown away, so the steps get what diffusers' generator gives next.
    """
    generator = seeded_generator(seed)
    draw(generator, shape)
    return continued_noise(generator, shape)


def expand_like(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Noise levels [B] as [B, 1, ...], broadcastable to ``x`` [B, ...]; a scalar and what fits already stay."""
    return sigma.view(sigma.shape[:1] + (1,) * (x.ndim - 1)) if sigma.ndim == 1 else sigma


def noise_where_empty(latent_image: torch.Tensor, noise: torch.Tensor, noised: torch.Tensor) -> torch.Tensor:
    """``noised``, and the bare noise for every image or frame of ``latent_image`` [B, C, ...] that is all zeros.

    diffusers' way: what is made from nothing starts from N(0, 1) whatever the first noise level is.
    """
    empty = latent_image.abs().amax(dim=(1, -2, -1), keepdim=True) == 0
    return torch.where(empty, noise, noised)
