"""Weights stored in ComfyUI's quantised formats, and what they mean."""

from __future__ import annotations

import json

import layouts
import pytest
import torch


def stored(weight: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """A weight in a format, as ComfyUI's own quantisers write it."""
    if name == "nvfp4":
        kitchen = pytest.importorskip("comfy_kitchen", reason="comfy_kitchen, which ComfyUI brings, writes nvfp4")
        scale = weight.abs().amax() / (448 * 6)
        packed, blocks = kitchen.quantize_nvfp4(weight, scale)
        return {"weight": packed, "weight_scale": blocks.view(torch.uint8), "weight_scale_2": scale}
    if name.startswith("int8"):
        scale = weight.abs().amax(1, keepdim=True) / 127 if name.endswith("rows") else weight.abs().amax() / 127
        return {"weight": torch.round(weight / scale).to(torch.int8), "weight_scale": scale}
    kind = getattr(torch, name)
    scale = weight.abs().amax() / torch.finfo(kind).max
    return {"weight": (weight / scale).to(kind), "weight_scale": scale, "input_scale": torch.ones(())}


def meant(weight: torch.Tensor, name: str) -> torch.Tensor:
    held = stored(weight, name)
    if name != "nvfp4":
        return held["weight"].float() * held["weight_scale"]
    import comfy_kitchen

    blocks = held["weight_scale"].view(torch.float8_e4m3fn)
    return comfy_kitchen.dequantize_nvfp4(held["weight"], held["weight_scale_2"], blocks, torch.float32)


def marked(weight: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """A weight in a format with the mark that names it, as ComfyUI's own files have it."""
    mark = torch.tensor(list(json.dumps({"format": name.removesuffix("_rows")}).encode()), dtype=torch.uint8)
    return {**stored(weight, name), "comfy_quant": mark}


def scaled(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight as older scaled fp8 files have it."""
    held = stored(weight, "float8_e4m3fn")
    return {"weight": held["weight"], "scale_weight": held["weight_scale"]}


MIXED = ("float8_e4m3fn", "scaled", "int8_tensorwise_rows", "plain", "float8_e5m2")


def quantised(weights: dict, how: str) -> tuple[dict, dict]:
    """A file's tensors with every matrix quantised, and the floating weights that it stands for.

    ``how``: "scaled fp8" for the older files, "mixed" for a file of several kinds, else a format's name.
    """
    if how == "scaled fp8":
        file = layouts.scaled_fp8(weights)
        return file, layouts.true_values(file)
    file, true, matrices = {}, {}, 0
    for key, value in weights.items():
        layer, _, part = key.rpartition(".")
        kind = MIXED[matrices % len(MIXED)] if how == "mixed" else how
        matrices += value.ndim == 2 and part == "weight"
        if value.ndim != 2 or part != "weight" or kind == "plain":
            file[key] = true[key] = value
            continue
        held = scaled(value) if kind == "scaled" else marked(value, kind)
        file |= {f"{layer}.{name}": tensor.contiguous() for name, tensor in held.items()}
        true[key] = meant(value, "float8_e4m3fn" if kind == "scaled" else kind)
    return file, true
