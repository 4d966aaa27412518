"""Quantised weights in files: a registry of the supported formats.

A quantised layer has ``weight`` and scales. Files identify the format in different ways: ComfyUI's files have
``comfy_quant``, the bytes of a JSON object that names the layer's format, or name the formats of all
layers in their metadata; older scaled fp8 files have only ``scale_weight`` or ``weight_scale``. See
comfy/quant_ops.py and comfy_kitchen. A layer is dequantised in float32 and cast to the compute dtype when a
host loads the model, so the same weights give the same values with and without these marks. A host that multiplies
with quantised weights takes their parts instead (QuantisedWeight).

Formats with a scale per block are those of matrices. A convolution is stored as the matrix of its kernels
(flattened from the second dimension), and rows and columns are filled up with zeros to whole blocks; the mark then
has the ``shape`` of the weight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from einops import rearrange

from ..files.checkpoint import Checkpoint, Entry, UnusableFile, Value, brief, json_object

logger = logging.getLogger(__name__)

MARK, METADATA = "comfy_quant", "_quantization_metadata"
FILE_MARK = "scaled_fp8"
SCALES = ("weight_scale", "scale_weight")
INPUT_SCALES = ("input_scale", "scale_input")
BESIDE = (*SCALES, "weight_scale_2", *INPUT_SCALES, MARK)
"""Keys of a layer besides its weight. The input's scale is for eight-bit products."""

FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}

ROWS = 256
"""Rows that are dequantised at a time: whole float32 matrices would fragment memory by the size of the model."""

E8M0_BIAS = 127

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of a four-bit float; its fourth bit is the sign."""

BLOCK, MX_BLOCK = 16, 32
"""Weights of a row that share one of nvfp4's and of mxfp8's scales; rows and columns are filled up to it."""


@dataclass(frozen=True)
class Format:
    """One way to store a layer.

    ``needs``: the keys besides ``weight``. ``shape``: the shape of the floating-point weight from that of the
    stored one; None for an unsupported number of dimensions. ``rows``: dequantises some rows to float32,
    given the parts (weight and scales) and a slice of rows. ``block``: the weights of a row that share a scale; 0
    where there is a scale per row or per tensor.
    """

    name: str
    needs: tuple[str, ...]
    shape: Callable[[tuple[int, ...]], tuple[int, ...] | None]
    rows: Callable[[Mapping[str, torch.Tensor], slice], torch.Tensor]
    block: int = 0


@dataclass(frozen=True)
class QuantisedWeight:
    """The weight of a quantised layer, not read yet; called with a dtype, it dequantises to it.

    ``shape``: of the floating-point weight, of which the stored one is the matrix. ``parts``: the stored tensors,
    ``weight``, its scales and perhaps ``input_scale``. ``options``: of the layer's mark.
    """

    layer: str
    path: Path
    format: Format
    shape: tuple[int, ...]
    parts: Mapping[str, Entry]
    options: Mapping

    def tensors(self) -> dict[str, torch.Tensor]:
        """The stored tensors: views of the memory-mapped file."""
        return {name: entry.read() for name, entry in self.parts.items()}

    def __call__(self, dtype: torch.dtype) -> torch.Tensor:
        """UnusableFile where the parts do not fit together."""
        tensors = {name: entry.read(alone=name == "weight") for name, entry in self.parts.items()}
        made = torch.empty(self.shape, dtype=dtype)
        matrix = made.flatten(1) if made.ndim > 1 else made
        try:
            for start in range(0, self.shape[0], ROWS):
                rows = slice(start, min(start + ROWS, self.shape[0]))  # nvfp4's scales fill a whole tile
                matrix[rows].copy_(_without_filling(self.format.rows(tensors, rows), matrix))
        except (RuntimeError, IndexError) as error:
            raise UnusableFile(
                f"{self.path}: {self.layer} does not fit its format {self.format.name} ({error})"
            ) from error
        return made


def _without_filling(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Some rows without the columns that fill up a block."""
    if rows.ndim < 2:
        return rows
    rows = rows.flatten(1)
    filled = rows.shape[1] - matrix.shape[1]
    return rows[:, : matrix.shape[1]] if 0 < filled < MX_BLOCK else rows


def _same_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return shape or None


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return shape if len(shape) == 2 else None


def _twice_as_wide(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return (shape[0], shape[1] * 2) if len(shape) == 2 else None


def _scaled_rows(parts: Mapping[str, torch.Tensor], rows: slice, kind: torch.dtype | None = None) -> torch.Tensor:
    """One scale per tensor or per row; a missing scale is 1. Old files store float8 bytes as uint8."""
    weight = parts["weight"][rows]
    if kind is not None and weight.dtype == torch.uint8:
        weight = weight.view(kind)
    scale = parts.get("weight_scale", torch.ones(())).float().flatten()
    scale = scale if scale.numel() == 1 else scale[rows]
    return weight.float() * scale.reshape(-1, *(1,) * (weight.ndim - 1))


def _nvfp4_rows(parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
    """Two four-bit floats per byte, the first in its upper half; a float8 scale per 16 of them, and one for all."""
    packed = parts["weight"][rows].view(torch.uint8)
    codes = rearrange(torch.stack([packed >> 4, packed & 15]), "nibble rows bytes -> rows (bytes nibble)").long()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]
    blocks = -(-values.shape[1] // BLOCK)
    scales = _untiled(parts["weight_scale"].contiguous().view(torch.float8_e4m3fn), blocks)[rows]
    whole = parts["weight_scale_2"].float().reshape(())
    return values * scales.float().repeat_interleave(BLOCK, dim=1)[:, : values.shape[1]] * whole


def _mxfp8_rows(parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
    """A power of two per 32 weights, stored as its exponent plus 127 (E8M0)."""
    weight = parts["weight"][rows].view(torch.float8_e4m3fn)
    blocks = -(-weight.shape[1] // MX_BLOCK)
    exponents = _untiled(parts["weight_scale"].contiguous().view(torch.uint8), blocks)[rows]
    scales = torch.exp2(exponents.float() - E8M0_BIAS)
    return weight.float() * scales.repeat_interleave(MX_BLOCK, dim=1)[:, : weight.shape[1]]


def _untiled(scales: torch.Tensor, columns: int) -> torch.Tensor:
    """Scales by row and column, from cuBLAS' tiles of 128 rows and 4 columns."""
    tiles = -(-columns // 4)
    axes = {"across": tiles, "inner": 32, "outer": 4, "four": 4}
    table = rearrange(scales.flatten(), "(down across inner outer four) -> (down outer inner) (across four)", **axes)
    return table[:, :columns]


FORMATS = {
    row.name: row
    for row in (
        *(Format(name, (), _same_shape, partial(_scaled_rows, kind=kind)) for name, kind in FLOAT8.items()),
        Format("int8_tensorwise", ("weight_scale",), _same_shape, _scaled_rows),
        Format("nvfp4", ("weight_scale", "weight_scale_2"), _twice_as_wide, _nvfp4_rows, BLOCK),
        Format("mxfp8", ("weight_scale",), _matrix_shape, _mxfp8_rows, MX_BLOCK),
    )
}
"""By ComfyUI's name. A new format is a row here."""


def with_quantised_layers(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with one entry per quantised layer, scales included; unchanged if no layer is quantised.

    UnusableFile for an unsupported format, and for a layer that does not fit its format.
    """
    formats = {**_formats_by_scales(checkpoint), **_formats_by_marks(checkpoint)}
    if not formats:
        return checkpoint
    entries = {key: entry for key, entry in checkpoint.entries.items() if not _is_beside(key, formats)}
    for layer, options in formats.items():
        entries[f"{layer}.weight"] = _quantised_entry(checkpoint, layer, options)
    names = ", ".join(sorted({options["format"] for options in formats.values()}))
    logger.info("%s: %d layers are stored as %s.", checkpoint.path, len(formats), names)
    return checkpoint.with_entries(entries)


def _is_beside(key: str, formats: Mapping[str, dict]) -> bool:
    """Whether a key is a scale or mark of a quantised layer, or the mark of a whole file."""
    layer, _, part = key.rpartition(".")
    return part == FILE_MARK or (part in BESIDE and layer in formats)


def _formats_by_marks(checkpoint: Checkpoint) -> dict[str, dict]:
    """The options of each quantised layer in ComfyUI's marks or metadata."""
    where = f"{checkpoint.path}: its description of quantised layers"
    layers: dict[str, object] = {}
    if METADATA in checkpoint.metadata:
        found = json_object(checkpoint.metadata[METADATA], where).get("layers")
        layers = found if isinstance(found, dict) else {}
    for key in checkpoint:
        if key.endswith(f".{MARK}"):
            layers[key.removesuffix(f".{MARK}")] = json_object(_mark_bytes(checkpoint, key), where)
    return {layer: _checked_options(checkpoint, layer, options) for layer, options in layers.items()}


MOST_MARK_BYTES = 4096


def _mark_bytes(checkpoint: Checkpoint, key: str) -> bytes:
    mark = checkpoint.entries[key]
    if len(mark.shape) != 1 or mark.shape[0] > MOST_MARK_BYTES or (value := mark.read()).dtype != torch.uint8:
        raise UnusableFile(f"{checkpoint.path}: {key} does not hold the bytes of a JSON object")
    return bytes(value.tolist())


def _checked_options(checkpoint: Checkpoint, layer: str, options: object) -> dict:
    if not isinstance(options, dict) or not isinstance(options.get("format"), str):
        raise UnusableFile(f"{checkpoint.path}: {layer} is marked as quantised without a format name")
    return options


def _formats_by_scales(checkpoint: Checkpoint) -> dict[str, dict]:
    """Scaled fp8 without marks: layers with a scale and an eight-bit weight."""
    layers: dict[str, dict] = {}
    for key in checkpoint:
        layer, _, part = key.rpartition(".")
        if part not in SCALES or f"{layer}.{MARK}" in checkpoint.entries:
            continue
        if layer in layers:
            raise UnusableFile(f"{checkpoint.path}: {layer}.weight has two scales, {' and '.join(SCALES)}")
        if f"{layer}.weight" not in checkpoint.entries:
            raise UnusableFile(f"{checkpoint.path}: {key} has no {layer}.weight to scale")
        layers[layer] = {"format": _float8_name(checkpoint, layer, key)}
    return layers


def _float8_name(checkpoint: Checkpoint, layer: str, scale: str) -> str:
    entry = checkpoint.entries[f"{layer}.weight"]
    dtype = entry.read().dtype
    name = next((name for name, kind in FLOAT8.items() if kind == dtype), None)
    if name is None and METADATA in checkpoint.metadata:
        return ""  # the metadata names its format
    if name is None:
        raise UnusableFile(
            f"{checkpoint.path}: {layer}.weight has a scale and its dtype is {dtype}; scales are supported for "
            "float8_e4m3fn and float8_e5m2"
        )
    return name


def _quantised_entry(checkpoint: Checkpoint, layer: str, options: Mapping) -> Entry:
    """A layer's weight as one entry; UnusableFile if it cannot be dequantised."""
    format = _known_format(checkpoint, layer, options)
    parts = _parts(checkpoint, layer)
    for name in ("weight", *format.needs):
        if name not in parts:
            raise UnusableFile(f"{checkpoint.path}: {layer} is quantised as {format.name} but has no {name}")
    stored = parts["weight"]
    shape = format.shape(stored.shape)
    if shape is None:
        raise UnusableFile(
            f"{checkpoint.path}: {layer}.weight has the shape {list(stored.shape)}, which is unsupported for "
            f"{format.name}"
        )
    _check_scale(checkpoint, layer, format, parts, shape)
    shape = _floating_shape(checkpoint, layer, options, shape)
    return Entry(shape, stored.read, QuantisedWeight(layer, checkpoint.path, format, shape, parts, options))


def _floating_shape(checkpoint: Checkpoint, layer: str, options: Mapping, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a layer's mark, of a weight that is stored as a matrix and perhaps filled up; else as stored."""
    found = options.get("shape")
    if found is None:
        return stored
    known = isinstance(found, list) and 2 <= len(found) <= 5 and all(type(n) is int and 0 < n < 2**31 for n in found)
    if not known or len(stored) != 2 or not _fits((found[0], math.prod(found[1:])), stored):
        raise UnusableFile(
            f"{checkpoint.path}: {layer} is marked as a weight of the shape {brief(found)}, but {list(stored)} weights "
            "are stored"
        )
    return tuple(found)


def _fits(wanted: tuple[int, int], stored: tuple[int, ...]) -> bool:
    """Whether rows and columns were filled up by less than a block."""
    return all(0 <= has - asks < MX_BLOCK for asks, has in zip(wanted, stored))


def _known_format(checkpoint: Checkpoint, layer: str, options: Mapping) -> Format:
    extra = [name for name in ("convrot", "params") if options.get(name)]
    extra += ["pre_quant_scale"] if f"{layer}.pre_quant_scale" in checkpoint.entries else []
    format = FORMATS.get(options["format"])
    if format is None or extra:
        name = " with ".join([options["format"] or "no format", *extra])
        raise UnusableFile(
            f"{checkpoint.path}: {layer} is quantised as {brief(name)}, which is unsupported ({', '.join(FORMATS)} are "
            "supported); get the file in bf16 and choose weight_dtype fp8_e4m3fn or int8_bnb"
        )
    return format


def _parts(checkpoint: Checkpoint, layer: str) -> dict[str, Entry]:
    """A layer's weight and scales; the names of a scale are unified."""
    names = {"weight": "weight", "weight_scale_2": "weight_scale_2", **dict.fromkeys(SCALES, "weight_scale")}
    names |= dict.fromkeys(INPUT_SCALES, "input_scale")
    return {
        name: checkpoint.entries[f"{layer}.{stored}"]
        for stored, name in names.items()
        if f"{layer}.{stored}" in checkpoint.entries
    }


def _check_scale(checkpoint, layer: str, format: Format, parts: Mapping[str, Entry], shape: tuple[int, ...]) -> None:
    if "weight_scale" not in parts:
        return
    count = math.prod(parts["weight_scale"].shape)
    counts, scalar = {1, shape[0]}, True
    if format.block:
        counts = {-(-shape[0] // 128) * 128 * -(-shape[1] // (4 * format.block)) * 4}
    if "weight_scale_2" in format.needs:
        scalar = math.prod(parts["weight_scale_2"].shape) == 1
    if count not in counts or not scalar:
        raise UnusableFile(
            f"{checkpoint.path}: {layer} has scales of the shape {list(parts['weight_scale'].shape)}, which do not fit "
            f"its {list(shape)} weights stored as {format.name}"
        )


def set_values(module: torch.nn.Module, values: Mapping[str, Value], dtype: torch.dtype) -> None:
    """Dequantise the weights of a module to ``dtype``, in place."""
    for name, value in values.items():
        module.get_parameter(name).data = value(dtype)
