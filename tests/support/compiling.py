"""torch.compile by a backend that compiles nothing and counts its graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from sana_nodes.networks import accelerated, streaming
from sana_nodes.networks.autoencoder import use_fast_autoencoder
from sana_nodes.networks.latent_spaces import WAN, VaeSpec
from torch import _dynamo
from torch._dynamo.testing import CompileCounter


@contextmanager
def counted() -> Iterator[CompileCounter]:
    """The backend of compiled blocks, whatever they ask for."""
    counter, usual = CompileCounter(), torch.compile
    _dynamo.reset()
    with mock.patch.object(accelerated.torch, "compile", lambda call, backend: usual(call, backend=counter)):
        yield counter
    _dynamo.reset()


@torch.no_grad()
def graphs_of_wan(theirs, sizes: Sequence[tuple[int, int, int]]) -> list[int]:
    """How many graphs there are after each latent of such frames, rows and columns, which is decoded as by diffusers.

    None of them breaks.
    """
    _dynamo.reset()
    _dynamo.utils.counters.clear()
    mine, counter, counts = use_fast_autoencoder(copy.deepcopy(theirs)), CompileCounter(), []
    blocks, spec = accelerated.CompiledBlocks(mine, counter), VaeSpec(WAN, 16, 8, 4)
    for size in sizes:
        latents = torch.randn(1, 16, *size)
        with blocks.active():
            decoded = list(streaming.decode_pieces(mine, spec, latents, torch.device("cpu"), torch.float32))
        assert (torch.cat(decoded, dim=2) - theirs.decode(latents)[0]).abs().max() < 1e-5
        counts.append(counter.frame_count)
    assert not _dynamo.utils.counters["graph_break"]
    return counts
