"""Dtypes: the loaders' weight_dtype, the compute dtype, and layers that store one dtype and compute in another."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from . import int8
from .text_encoder import TokenEmbedding

logger = logging.getLogger(__name__)

WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "int8_bnb": torch.int8,
}

TRANSFORMER_DTYPES = ("default", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2", "int8_bnb")
TEXT_ENCODER_DTYPES = ("default", "bf16", "fp32", "int8_bnb")
VAE_DTYPES = ("default", "bf16", "fp32")


PRODUCTS = ("native", "full precision")
"""How weights are multiplied that stay quantised: as the device can, or dequantised at each use."""


def parse_weight_dtype(name: str, allowed: tuple[str, ...]) -> torch.dtype | None:
    """The torch dtype of a widget value; None keeps the file's. ValueError if it is unknown or not available."""
    if name not in allowed:
        raise ValueError(f"weight_dtype is {name!r}; choose one of {', '.join(allowed)}")
    if name == "int8_bnb" and (reason := int8.unavailable_reason()):
        others = "fp8_e4m3fn for weights of one byte, or default" if "fp8_e4m3fn" in allowed else "bf16 or default"
        raise ValueError(f"weight_dtype int8_bnb is not available: {reason}; choose {others}")
    return WEIGHT_DTYPES[name]


def narrow_weight_dtype(name: str, allowed: tuple[str, ...]) -> str:
    """The same value if it is allowed, else default: for a widget that applies to several models."""
    return name if name in allowed else "default"


def floating(wanted: torch.dtype | None) -> torch.dtype | None:
    """``wanted`` if it is a floating-point dtype, else None."""
    return wanted if wanted is not None and wanted.is_floating_point else None


def stored_dtype(module: torch.nn.Module, wanted: torch.dtype | None = None) -> torch.dtype:
    """The floating-point dtype that determines the compute dtype: ``wanted``, else that of most weights.

    Eight-bit integers are not considered: all other weights keep the dtype of the file.
    """
    if (dtype := floating(wanted)) is not None:
        return dtype
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def compute_dtype(stored: torch.dtype, native_bf16: bool) -> torch.dtype:
    """The compute dtype: bfloat16 if the device supports it natively and weights are not float32, else float32.

    Never float16, which overflows in Gemma-2, in DC-AE and in the transformers that were published in bfloat16.
    """
    return torch.bfloat16 if native_bf16 and stored != torch.float32 else torch.float32


BF16_FROM = {"cuda": (8, 0), "mps": (14,)}
"""The first that have bfloat16: compute capability of NVIDIA's cards (Ampere), version of macOS on Apple's."""

ROCM_WITHOUT_BF16 = ("gfx7", "gfx8", "gfx900", "gfx902", "gfx904", "gfx906", "gfx909", "gfx90c", "gfx10")
"""AMD's architectures before CDNA and RDNA 3, by how their names begin: they convert at each product."""


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 by itself. Of other kinds of devices it is not known: no."""
    if device.type == "cuda" and torch.version.hip:
        return not torch.cuda.get_device_properties(device).gcnArchName.startswith(ROCM_WITHOUT_BF16)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BF16_FROM["cuda"]
    if device.type == "mps":
        return tuple(int(part) for part in platform.mac_ver()[0].split(".")[:1] if part) >= BF16_FROM["mps"]
    return device.type == "cpu" and _cpu_native_bf16()


WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA under which its products are not bfloat16's own instructions."""


def _cpu_native_bf16() -> bool:
    """x86 has AVX512-BF16 or AMX, Arm its bfloat16 extension; torch's and oneDNN's own limits are kept to.

    mkldnn answers yes to AVX512 without BF16 too, where it converts at each product: on x86 it is not enough.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in WITHOUT_BF16 or not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # AVX2 also where ATEN_CPU_CAPABILITY says so
        return False
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # older torch cannot say
    return any(getattr(torch.cpu, name, bool)() for name in questions)


def log_compute_dtype(what: str, stored: torch.dtype, compute: torch.dtype) -> None:
    """One line in the log for a loaded model."""
    names = (str(dtype).removeprefix("torch.") for dtype in (compute, stored))
    logger.info("%s computes in %s: it is stored in %s", what, *names)


def floating_weight(layer: torch.nn.Module, compute_dtype: torch.dtype) -> torch.Tensor:
    """A layer's weight in a dtype of two bytes or more, to which a LoRA can be added."""
    weight = layer.weight.data
    if isinstance(layer, int8.Int8Linear):
        weight = layer.convert_weight(weight)
    return weight if weight.dtype.itemsize > 1 else weight.to(compute_dtype)


def use_casting_layers(
    module: torch.nn.Module,
    casting: Mapping[type, type],
    weight_dtype: torch.dtype | None,
    compute_dtype: torch.dtype,
) -> torch.nn.Module:
    """Make a module store one dtype and compute in another, in place.

    Layers of a class in ``casting``, or of a subclass that calls its forward (Wan's causal
    convolution), become the casting counterpart, which casts weight and bias to the input's dtype
    at each use. They are stored in ``weight_dtype`` (None: unchanged; 8-bit floats only for
    matrices and kernels; int8 for Linear layers, with a scale per row). The other weights are few
    and are cast to ``compute_dtype`` once.
    """
    integers = weight_dtype == torch.int8
    weight_dtype = None if integers else weight_dtype
    for part in module.modules():
        parameters = list(part.parameters(recurse=False))
        if not parameters:
            continue
        if integers and isinstance(part, torch.nn.Linear):
            int8.quantise(part)
        elif cast := _casting_class(type(part), casting):
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


def weights_to_cast(module: torch.nn.Module, compute_dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Weights of two bytes or more that casting layers would cast at each use; a token embedding casts rows alone."""
    rows = {id(part.weight) for part in module.modules() if isinstance(part, TokenEmbedding)}
    return [
        parameter
        for parameter in module.parameters()
        if parameter.is_floating_point()
        and parameter.dtype.itemsize > 1
        and parameter.dtype != compute_dtype
        and id(parameter) not in rows
    ]


def cast_once(module: torch.nn.Module, compute_dtype: torch.dtype, available: int) -> bool:
    """Put such weights into the dtype that is computed in, if that takes at most half of ``available`` bytes.

    Casting at each use costs a pass over all weights for each call of a model.
    """
    weights = weights_to_cast(module, compute_dtype)
    if sum(weight.numel() for weight in weights) * compute_dtype.itemsize > available // 2:
        return False
    for weight in weights:
        weight.data = weight.data.to(compute_dtype)
    return True


@cache
def _subclass(kind: type, cast: type) -> type:
    return type(kind.__name__, (kind, cast), {})


def _casting_class(kind: Any, casting: Mapping[type, type]) -> type | None:
    if kind in casting:
        return casting[kind]
    base = next((known for known in casting if issubclass(kind, known)), None)
    return None if base is None or issubclass(kind, casting[base]) else _subclass(kind, casting[base])


def _retype(parameter: torch.nn.Parameter, dtype: torch.dtype | None, compute_dtype: torch.dtype) -> None:
    if dtype is None:
        return
    small = dtype.itemsize == 1 and parameter.ndim < 2
    parameter.data = parameter.data.to(compute_dtype if small else dtype)
