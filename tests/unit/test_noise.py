"""Where a run starts: bare noise for what is empty, image by image and frame by frame."""

from __future__ import annotations

import pytest
import torch
from sana_nodes.samplers.flow_match import FlowMatch
from sana_nodes.samplers.trigflow import TrigFlow

LEVELS = {TrigFlow: 1.1, FlowMatch: 0.7}


def start(kind: type, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The start of a run on a latent, its noise, and x_t as the formula has it."""
    sampling, sigma = kind(), torch.tensor(LEVELS[kind])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    return sampling.noise_scaling(sigma, noise, latent), noise, sampling.mix(sigma, noise, latent)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["empty first", "empty last"])
@pytest.mark.parametrize("shape", [(32, 3, 2), (16, 3, 4, 2)], ids=["image", "video"])
def test_a_batch_of_one_empty_and_one_full_latent(kind, order, shape):
    full = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    latent = torch.stack([(torch.zeros(shape), full)[place] for place in order])
    x, noise, mixed = start(kind, latent)
    empty, given = order.index(0), order.index(1)
    assert torch.equal(x[empty], noise[empty]) and torch.equal(x[given], mixed[given])
    assert (x[given] - noise[given]).abs().max() > 0.1
    for place in (0, 1):  # as each would start alone
        alone = kind().noise_scaling(torch.tensor(LEVELS[kind]), noise[place : place + 1], latent[place : place + 1])
        assert torch.allclose(x[place : place + 1], alone)


@pytest.mark.parametrize("kind", LEVELS)
def test_a_video_of_which_the_first_frame_is_given(kind):
    latent = torch.zeros(2, 16, 3, 4, 2)
    latent[:, :, 0] = torch.randn(2, 16, 4, 2)
    x, noise, mixed = start(kind, latent)
    assert torch.equal(x[:, :, 0], mixed[:, :, 0]) and torch.equal(x[:, :, 1:], noise[:, :, 1:])


@pytest.mark.parametrize("kind", LEVELS)
def test_zeros_in_a_full_latent_are_a_part_of_it(kind):
    latent = torch.randn(1, 32, 3, 2)
    latent[:, :16] = 0.0
    latent[:, :, 0] = 0.0
    x, _, mixed = start(kind, latent)
    assert torch.equal(x, mixed)
