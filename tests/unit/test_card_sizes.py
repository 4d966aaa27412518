"""Published sizes on pretended cards of 4 to 12 GB: what fits, in which tiles, and the README's table of it.

Nothing is computed: weights and values are on the meta device, and memory is counted as on a card.
"""

from __future__ import annotations

import sys
from functools import cache

import pretend_card
import pytest
import tiny
import torch
from sana_nodes.host.embedded import devices, vae
from sana_nodes.networks import autoencoder

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))  # last: it has a graphs.py as support has

import memory as benchmark

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a build of torch for CUDA asks a real card")

GB = 10**9
CARDS = (4, 6, 8, 12)
DRIVER = 0.6
"""GB that a driver and its libraries take of a card."""

README = (tiny.REPOSITORY / "README.md").read_text(encoding="utf-8")

DECODED = {
    "1024 × 1024, DC-AE in bfloat16": ("DC-AE", torch.bfloat16, (1, 32, 32, 32)),
    "2048 × 2048, DC-AE in bfloat16": ("DC-AE", torch.bfloat16, (1, 32, 64, 64)),
    "4096 × 4096, DC-AE in bfloat16": ("DC-AE", torch.bfloat16, (1, 32, 128, 128)),
    "832 × 480 video, Wan VAE in float32": ("Wan 2.1 VAE", torch.float32, (1, 16, 4, 60, 104)),
    "1280 × 704 video, LTX-2 VAE in bfloat16": ("LTX-2 video VAE", torch.bfloat16, (1, 128, 7, 22, 40)),
}
"""What is decoded: autoencoder, dtype and latent. Videos of more frames take no more."""


@cache
def decoded(name: str, size: int) -> str:
    """How it is decoded on a card of ``size`` GB: whole, or in tiles of so many pixels; checked by memory."""
    model, dtype, shape = DECODED[name]
    module = benchmark.module(model, "meta", dtype)
    module.config._name_or_path = ""
    with pretend_card.cards(memory=int((size - DRIVER) * GB), values="meta") as machine:
        part = vae.Vae(autoencoder.Autoencoder(module, benchmark.VAES[model]), dtype, torch.device("cuda"))
        tried, true = [], autoencoder.Attempt.__enter__
        autoencoder.Attempt.__enter__ = lambda self: tried.append(self.tile)
        try:
            part.decode(torch.zeros(shape))
        finally:
            autoencoder.Attempt.__enter__ = true
            devices.put_all_away()
        assert machine.peak[0] <= machine.memory
    return "whole" if tried[-1] is None else f"tiles of {tried[-1]}"


def row(name: str) -> str:
    return f"| {name} | {' | '.join(decoded(name, size) for size in CARDS)} |"


@pytest.mark.parametrize("name", DECODED)
def test_the_readme_says_how_it_is_decoded(name):
    assert row(name) in README, row(name)
