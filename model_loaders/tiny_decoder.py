"""Load tsd, the tiny preview decoder for DC-AE's published latents: a safetensors file to a module."""

from __future__ import annotations

from pathlib import Path

from ..networks.previews import TinyDecoder
from .files.checkpoint import UnusableFile
from .files.open import open_checkpoint

LAYERS = "abcl"
"""The convolutions of a stage: conv_a, conv_b, conv_c and conv_l."""


def load_tiny_decoder(path: Path) -> TinyDecoder:
    """The tsd decoder in a file; UnusableFile for any other file."""
    checkpoint = open_checkpoint(path)
    numbers = {key.split(".")[0] for key in checkpoint if key.split(".")[0].isdecimal()}
    stages = len(numbers) - 1
    if stages < 1 or numbers != {str(number) for number in range(stages + 1)}:
        raise UnusableFile(f"{path} is not tsd, the tiny preview decoder for SANA")
    layers = [f"{number}.conv_{name}" for number in range(stages) for name in LAYERS] + [str(stages)]
    for layer in layers:
        checkpoint.shape(f"{layer}.weight", 4)
        checkpoint.shape(f"{layer}.bias", 1)
    return TinyDecoder({key: checkpoint[key].float() for key in checkpoint}, stages)
