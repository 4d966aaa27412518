"""Published sizes on cards of 4 to 12 GB: what is tried first, by the estimates, and the documentation's table of it.

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
from sana_nodes.model_loaders.quantised.writer import quantised_bytes

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a build of torch for CUDA asks a real card")

GB = 10**9
CARDS = (4, 6, 8, 12)
DRIVER = 0.6
"""GB that a driver and its libraries take of a card."""

README = (tiny.REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCUMENT = (tiny.REPOSITORY / "docs" / "what-to-expect.md").read_text(encoding="utf-8")

DECODED = {
    "1024 × 1024, DC-AE in bfloat16": ("DC-AE", torch.bfloat16, (1, 32, 32, 32)),
    "2048 × 2048, DC-AE in bfloat16": ("DC-AE", torch.bfloat16, (1, 32, 64, 64)),
    "4096 × 4096, DC-AE in bfloat16": ("DC-AE", torch.bfloat16, (1, 32, 128, 128)),
    "832 × 480 video, Wan VAE in float32": ("Wan 2.1 VAE", torch.float32, (1, 16, 4, 60, 104)),
    "1280 × 704 video, LTX-2 VAE in bfloat16": ("LTX-2 video VAE", torch.bfloat16, (1, 128, 7, 22, 40)),
}
"""What is decoded: autoencoder, dtype and latent. Videos of more frames take no more."""


def autoencoder_of(name: str):
    model, dtype, shape = DECODED[name]
    module = benchmark.module(model, "meta", dtype)
    return autoencoder.Autoencoder(module, benchmark.VAES[model]), dtype, shape


class Estimated:
    """A run that only asks what could fit in ``memory`` bytes."""

    def __init__(self, memory: int, dtype: torch.dtype):
        self.memory, self.dtype = memory, dtype

    def fits(self, needed: int) -> bool:
        return needed <= self.memory

    def make_room(self, needed: int) -> None: ...


@cache
def decoded(name: str, size: int) -> str:
    """How it is decoded first on a card of ``size`` GB: whole, or in tiles of so many pixels."""
    part, dtype, shape = autoencoder_of(name)
    run = Estimated(int((size - DRIVER) * GB), dtype)
    if part.spec.is_video:
        needed, usual = part._frames_bytes(torch.zeros(shape, device="meta"), run), autoencoder.VIDEO_TILE
    else:
        needed, usual = part._image_bytes("decode", torch.zeros(shape), run), autoencoder.IMAGE_TILE
    tile = next(part._attempts("", run, None, usual, needed)).tile
    return "whole" if tile is None else f"tiles of {tile}"


def row(name: str) -> str:
    return f"| {name} | {' | '.join(decoded(name, size) for size in CARDS)} |"


@pytest.mark.parametrize("name", DECODED)
def test_the_documentation_says_how_it_is_decoded(name):
    assert row(name) in DOCUMENT, row(name)


SAMPLED = {
    "1024 × 1024, SANA-Sprint 0.6B": ("Sprint 0.6B", "1024 x 1024, batch 1, prompt 300"),
    "1024 × 1024, SANA-Sprint 1.6B": ("Sprint 1.6B", "1024 x 1024, batch 1, prompt 300"),
    "4096 × 4096, SANA 1.6B 4K": ("Sana 1.6B", "4096 x 4096, batch 2, prompt 300"),
    "832 × 480, 5 seconds, SANA-Video 480p": ("SANA-Video 480p", "832 x 480 x 81, batch 2, prompt 300"),
    "1280 × 704, 5 seconds, SANA-Video 720p": ("SANA-Video 720p", "1280 x 704 x 121, batch 2, prompt 300"),
}
"""What is sampled: transformer and size of a step, in bfloat16; guidance computes two prompts at once."""


@cache
def weights_and_step(name: str) -> tuple[dict[str, int], int]:
    """Bytes of a transformer's weights by their format, and of a step beside them."""
    model, size = SAMPLED[name]
    cases = benchmark.step_cases(model, "meta", torch.bfloat16)
    step = next(case.estimate for case in cases if (case.what, case.size) == ("step", size))
    state = benchmark.module(model, "meta", torch.bfloat16).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    packed = {wanted: quantised_bytes(shapes, wanted) for wanted in ("fp8", "nvfp4")}
    return {"bf16": sum(value.nbytes for value in state.values()), **packed}, step


def sampled(name: str, size: int) -> str:
    """The widest weights with which it stays whole on a card of ``size`` GB."""
    weights, step = weights_and_step(name)
    room = (size - DRIVER) * GB
    return next((format for format, count in weights.items() if count + step <= room), "in part")


@pytest.mark.parametrize("name", SAMPLED)
def test_the_readme_says_which_weights_fit(name):
    row = f"| {name} | {' | '.join(sampled(name, size) for size in CARDS)} |"
    assert row in README, row


@pytest.mark.parametrize("size", [4])
def test_it_fits_where_the_readme_says_so(size):
    """1024 x 1024 on a pretended card, without values."""
    name = next(iter(DECODED))
    part, dtype, shape = autoencoder_of(name)
    with pretend_card.cards(memory=int((size - DRIVER) * GB), values="meta") as machine:
        try:
            vae.Vae(part, dtype, torch.device("cuda")).decode(torch.zeros(shape))
        finally:
            devices.put_all_away()
    assert machine.peak[0] <= machine.memory
