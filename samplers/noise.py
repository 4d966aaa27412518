"""Noise as in diffusers' pipelines: one CPU generator for all steps, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def seeded_generator(seed: int) -> torch.Generator:
    """The generator for all steps. ``seed``: 0 to 2**64 - 1."""
    return torch.Generator("cpu").manual_seed(seed)


def draw(generator: torch.Generator, shape: Sequence[int]) -> torch.Tensor:
    """One float32 sample of N(0, 1) on the CPU (diffusers' randn_tensor with a CPU generator)."""
    return torch.randn(tuple(shape), generator=generator, device="cpu", dtype=torch.float32)


def continued_noise(generator: torch.Generator, shape: Sequence[int]) -> NoiseSampler:
    """Step noise for a sampler, from the generator of the initial noise.

    Returns ``noise_sampler(sigma, sigma_next)``, k-diffusion's interface, giving float32 tensors of
    ``shape`` on sigma's device.
    """

    def noise_sampler(sigma, sigma_next):
        return to_device(draw(generator, shape), sigma.device)

    return noise_sampler


def to_device(noise: torch.Tensor, device: torch.device) -> torch.Tensor:
    """CPU noise on a device; to a card from pinned memory, so that nothing waits for what runs there."""
    if device.type != "cuda":
        return noise.to(device)
    return noise.pin_memory().to(device, non_blocking=True)


def noise_after_start(seed: int, shape: Sequence[int]) -> NoiseSampler:
    """Step noise for a caller that generated the initial noise from ``seed`` itself.

    The initial noise is generated again and discarded, so the steps get the same noise as in diffusers.
    """
    generator = seeded_generator(seed)
    draw(generator, shape)
    return continued_noise(generator, shape)


def expand_like(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Noise levels [B] as [B, 1, ...], broadcastable to ``x`` [B, ...]; other shapes are returned unchanged."""
    return sigma.view(sigma.shape[:1] + (1,) * (x.ndim - 1)) if sigma.ndim == 1 else sigma


def noise_where_empty(latent_image: torch.Tensor, noise: torch.Tensor, noised: torch.Tensor) -> torch.Tensor:
    """``noised``, with pure noise for every image or frame of ``latent_image`` [B, C, ...] that is all zeros.

    As in diffusers: without an image, sampling starts from N(0, 1) regardless of the first noise level.
    """
    empty = latent_image.abs().amax(dim=(1, -2, -1), keepdim=True) == 0
    return torch.where(empty, noise, noised)
