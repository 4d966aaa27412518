"""Scaled fp8: weights of 8 bits with a scale beside each, as ComfyUI and its tools write them.

``LAYER.weight`` is stored divided by ``LAYER.scale_weight`` (since ComfyUI 0.4: ``LAYER.weight_scale``), one number, or
one for each row. The scale of a layer's input serves matrix products in fp8, which are not done here.
The product is made in float32 and brought to the computation dtype when a host takes the model, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from .checkpoints import Checkpoint, UnusableFile

MARKER = "scaled_fp8"
SCALES = (".scale_weight", ".weight_scale")
UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)

ROWS = 256
"""So many rows at a time: whole matrices in float32 in passing would leave holes in memory as large as the model."""

TrueValue = Callable[[torch.dtype], torch.Tensor]


def without_notes(checkpoint: Checkpoint) -> Checkpoint:
    """A scaled fp8 checkpoint without what only matrix products in fp8 need; any other as it is."""
    if MARKER not in checkpoint.shapes and not any(key.endswith(SCALES) for key in checkpoint):
        return checkpoint
    kept = (key for key in checkpoint if key != MARKER and not key.endswith(UNUSED))
    return checkpoint.renamed({key: (key, 0, 1) for key in kept})


def take_scales(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, TrueValue]]:
    """A checkpoint without its scales, and for each weight that has one a function giving its true value in a dtype.

    UnusableFile for a scale whose weight is missing, is not of 8 bits, or has another number of rows.
    """
    scales: dict[str, str] = {}
    for key in checkpoint:
        suffix = next((s for s in SCALES if key.endswith(s)), None)
        if suffix is not None:
            weight = key.removesuffix(suffix) + ".weight"
            if weight in scales:
                raise UnusableFile(f"{checkpoint.path}: {weight} has two scales, {scales[weight]} and {key}")
            scales[weight] = key
    left_out = set(scales.values())
    kept = checkpoint.renamed({key: (key, 0, 1) for key in checkpoint if key not in left_out})
    return kept, {weight: _true_value(checkpoint, weight, scale) for weight, scale in scales.items()}


def _true_value(checkpoint: Checkpoint, weight: str, scale: str) -> TrueValue:
    shape = checkpoint.shapes.get(weight)
    if shape is None:
        raise UnusableFile(f"{checkpoint.path}: {scale} is there and {weight}, which it scales, is missing")
    if checkpoint[weight].dtype not in DTYPES:
        raise UnusableFile(
            f"{checkpoint.path}: {weight} has a scale and holds {checkpoint[weight].dtype}; float8_e4m3fn or "
            "float8_e5m2 is read with one"
        )
    factors = math.prod(checkpoint.shapes[scale])
    if factors not in (1, shape[0]):
        raise UnusableFile(
            f"{checkpoint.path}: {scale} has the shape {list(checkpoint.shapes[scale])} where one number, or one for "
            f"each of the {shape[0]} rows of {weight}, was expected"
        )

    def read(dtype: torch.dtype) -> torch.Tensor:
        stored, value = checkpoint.read_alone(weight), torch.empty(shape, dtype=dtype)
        factor = checkpoint[scale].float().reshape(-1, *(1,) * (len(shape) - 1)).expand(shape[0], *shape[1:])
        for rows, source, by in zip(value.split(ROWS), stored.split(ROWS), factor.split(ROWS)):
            rows.copy_(source.float() * by)
        return value

    return read


def apply_scales(module: torch.nn.Module, scaled: Mapping[str, TrueValue], dtype: torch.dtype) -> None:
    """Give each scaled weight of a module its true value in ``dtype``, in place."""
    for name, true_value in scaled.items():
        module.get_parameter(name).data = true_value(dtype)
