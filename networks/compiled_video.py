"""torch.compile of Wan's decoder, layer by layer: no graph for another number of frames.

A layer reads and writes the frames that it keeps in the decoder's list, from its own index on. A graph of that would be
another one for each layer. Here it gets its own frames alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

KEPT = {"WanResidualBlock": 2, "WanResample": 1}
"""Entries of the list that a layer of diffusers' class has; an upsampling of the sides alone has none."""


def layers_of(decoder: torch.nn.Module) -> list[torch.nn.Module]:
    """What is compiled of a WanDecoder3d: where nearly all of the time goes. Of Wan 2.2's nothing."""
    if any(type(block).__name__ != "WanUpBlock" for block in decoder.up_blocks):
        return []
    return [part for part in decoder.modules() if type(part).__name__ in KEPT]


def _run(layer, x: torch.Tensor, frames: list):
    out = layer._call_impl(x, frames, [0])
    return out, frames


def compiled_layer(layer: Any, backend: Any) -> Callable:
    """What stands for a layer's call in the decoder."""
    run = torch.compile(_run, backend=backend)
    count = 0 if getattr(layer, "mode", "") == "upsample2d" else KEPT[type(layer).__name__]

    def call(x, feat_cache=None, feat_idx=(0,)):
        if feat_cache is None:
            return layer._call_impl(x)
        first = feat_idx[0]
        out, frames = run(layer, x, [feat_cache[number] for number in range(first, first + count)])
        for number, kept in enumerate(frames, first):
            feat_cache[number] = kept
        feat_idx[0] = first + count
        return out

    return call
