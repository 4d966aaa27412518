"""Weight dtypes: what the loaders' widgets mean, and how a module stores one dtype and computes in another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

from .text_encoder import TokenEmbedding

WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}

TRANSFORMER_DTYPES = ("default", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2", "int8_bnb")
TEXT_ENCODER_DTYPES = ("default", "bf16", "fp32", "int8_bnb")
VAE_DTYPES = ("default", "bf16", "fp32")


def parse_weight_dtype(name: str, allowed: tuple[str, ...]) -> torch.dtype | None:
    """The torch dtype a widget names; None keeps the file's."""
    if name not in allowed:
        raise ValueError(f"weight_dtype is {name!r}; choose one of {', '.join(allowed)}")
    if name == "int8_bnb":
        raise ValueError(
            "weight_dtype int8_bnb is not built yet; choose fp8_e4m3fn for weights of one byte, or default"
        )
    return WEIGHT_DTYPES[name]


def narrow_weight_dtype(name: str, allowed: tuple[str, ...]) -> str:
    """The same choice where a part allows it, else default: for one widget that sets several parts."""
    return name if name in allowed else "default"


def stored_dtype(module: torch.nn.Module) -> torch.dtype:
    """The dtype that most of a module's weights have."""
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=counts.get)


def adapt(
    module: torch.nn.Module,
    casting: Mapping[type, type],
    weight_dtype: torch.dtype | None,
    compute_dtype: torch.dtype,
) -> torch.nn.Module:
    """Let a module store one dtype and compute in another, in place.

    Layers of a class in ``casting``, or of a subclass that calls its forward (Wan's causal
    convolution), become its casting counterpart, which brings weight and bias to
    its input's dtype at each use, and are stored in ``weight_dtype`` (None: as they are; 8-bit
    floats for matrices and kernels alone). All other weights are few and are put into
    ``compute_dtype`` once.
    """
    for part in module.modules():
        parameters = list(part.parameters(recurse=False))
        if not parameters:
            continue
        if cast := _casting_class(type(part), casting):
            part.__class__ = cast
            for parameter in parameters:
                _retype(parameter, weight_dtype, compute_dtype)
        elif isinstance(part, TokenEmbedding):
            part.compute_dtype = compute_dtype
            _retype(part.weight, weight_dtype, compute_dtype)
        else:
            for parameter in parameters:
                parameter.data = parameter.data.to(compute_dtype)
    return module


@cache
def _subclass(kind: type, cast: type) -> type:
    return type(kind.__name__, (kind, cast), {})


def _casting_class(kind: type, casting: Mapping[type, type]) -> type | None:
    if kind in casting:
        return casting[kind]
    base = next((known for known in casting if issubclass(kind, known)), None)
    return None if base is None or issubclass(kind, casting[base]) else _subclass(kind, casting[base])


def _retype(parameter: torch.nn.Parameter, dtype: torch.dtype | None, compute_dtype: torch.dtype) -> None:
    if dtype is None:
        return
    small = dtype.itemsize == 1 and parameter.ndim < 2
    parameter.data = parameter.data.to(compute_dtype if small else dtype)
