"""Which weights of a SANA transformer are quantised, by their names in diffusers' module."""

from __future__ import annotations

import re

KEPT = {
    r"patch_embed(ding)?\.": "the embedding of the latent",
    r"caption_(projection|norm)\.": "the embedding of the prompt",
    r"time_embed\.": "times, embedded guidance and the modulation of all blocks",
    r"proj_out\.": "the last layer",
    r"(.*\.)?scale_shift_table$": "modulation",
    r".*\.norm\w*\.": "norms",
    r".*\.conv_depth\.": "a convolution of each channel alone, which is no product of matrices",
    r".*\.bias$": "biases",
}
"""Weights that stay in bfloat16 (float16 in a file of float16): a pattern of their names, and what they are."""

INSTEAD = {r".*\.conv_temp\.": {"nvfp4": "fp8"}}
"""Layers that are stored in another format than the one asked for: convolutions along time lose most by four bits."""


def packing_of(name: str, shape: tuple[int, ...], wanted: str) -> str | None:
    """The name in packing.PACKINGS of a weight's format; None for one that is kept."""
    if len(shape) < 2 or not name.endswith(".weight") or any(re.match(pattern, name) for pattern in KEPT):
        return None
    return next((row.get(wanted, wanted) for pattern, row in INSTEAD.items() if re.match(pattern, name)), wanted)
