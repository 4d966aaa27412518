"""Files whose layers hold a few bits for each weight, with scales: one registry of the formats that are read.

A quantised layer has ``weight`` and scales beside it. How a file says so differs: ComfyUI's files have
``comfy_quant``, the bytes of a JSON object that names the layer's format, or name the formats of all
layers in their metadata; older scaled fp8 files have ``scale_weight`` or ``weight_scale`` alone. See
comfy/quant_ops.py and comfy_kitchen. The floating value of a layer is made in float32 and brought to the
computation dtype when a host takes the model, so that one file gives one answer whatever marks it has.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange

from ..files.checkpoint import Checkpoint, Entry, UnusableFile, Value

logger = logging.getLogger(__name__)

MARK, METADATA = "comfy_quant", "_quantization_metadata"
FILE_MARK = "scaled_fp8"
SCALES = ("weight_scale", "scale_weight")
BESIDE = (*SCALES, "weight_scale_2", "input_scale", "scale_input", MARK)
"""What a layer holds besides its weight. The input's scale is for products in eight bits, which are not done here."""

FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}

ROWS = 256
"""So many rows at a time: whole matrices in float32 in passing would leave holes in memory as large as the model."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of a four-bit float; its fourth bit is the sign."""

BLOCK = 16
"""Weights of a row that share one of nvfp4's scales."""


@dataclass(frozen=True)
class Format:
    """One way to store a layer.

    ``needs``: what it holds besides ``weight``. ``shape``: the floating weight's, of the stored one's;
    None where it has another number of dimensions than the format knows. ``rows``: how float32
    values are made of some rows, given the parts (weight and scales) and a slice of rows.
    """

    name: str
    needs: tuple[str, ...]
    shape: Callable[[tuple[int, ...]], tuple[int, ...] | None]
    rows: Callable[[Mapping[str, torch.Tensor], slice], torch.Tensor]


def _same_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return shape or None


def _twice_as_wide(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return (shape[0], shape[1] * 2) if len(shape) == 2 else None


def _scaled_rows(parts: Mapping[str, torch.Tensor], rows: slice, kind: torch.dtype | None = None) -> torch.Tensor:
    """One scale for the tensor, or one for each row; none is 1. Old files hold float8 bytes as uint8."""
    weight = parts["weight"][rows]
    if kind is not None and weight.dtype == torch.uint8:
        weight = weight.view(kind)
    scale = parts.get("weight_scale", torch.ones(())).float().flatten()
    scale = scale if scale.numel() == 1 else scale[rows]
    return weight.float() * scale.reshape(-1, *(1,) * (weight.ndim - 1))


def _nvfp4_rows(parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
    """Two four-bit floats in a byte, the first in its upper half; a float8 scale for 16 of them, and one for all."""
    packed = parts["weight"][rows].view(torch.uint8)
    codes = rearrange(torch.stack([packed >> 4, packed & 15]), "nibble rows bytes -> rows (bytes nibble)").long()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]
    blocks = -(-values.shape[1] // BLOCK)
    scales = _untiled(parts["weight_scale"].contiguous().view(torch.float8_e4m3fn), blocks)[rows]
    whole = parts["weight_scale_2"].float().reshape(())
    return values * scales.float().repeat_interleave(BLOCK, dim=1)[:, : values.shape[1]] * whole


def _untiled(scales: torch.Tensor, columns: int) -> torch.Tensor:
    """Scales by row and column, of cuBLAS' tiles of 128 rows and 4 columns."""
    tiles = -(-columns // 4)
    axes = {"across": tiles, "inner": 32, "outer": 4, "four": 4}
    table = rearrange(scales.flatten(), "(down across inner outer four) -> (down outer inner) (across four)", **axes)
    return table[:, :columns]


FORMATS = {
    row.name: row
    for row in (
        *(Format(name, (), _same_shape, partial(_scaled_rows, kind=kind)) for name, kind in FLOAT8.items()),
        Format("int8_tensorwise", ("weight_scale",), _same_shape, _scaled_rows),
        Format("nvfp4", ("weight_scale", "weight_scale_2"), _twice_as_wide, _nvfp4_rows),
    )
}
"""By ComfyUI's name. A new format is a row here."""


def with_quantised_layers(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with each quantised layer as one entry, its scales inside; itself where none is quantised.

    UnusableFile for a format that is unknown here, and for a layer that does not fit its format.
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
    """What ComfyUI's marks or metadata say of each quantised layer."""
    layers = {}
    if METADATA in checkpoint.metadata:
        layers = _json(checkpoint, checkpoint.metadata[METADATA]).get("layers")
        layers = layers if isinstance(layers, dict) else {}
    for key in checkpoint:
        if key.endswith(f".{MARK}"):
            layers[key.removesuffix(f".{MARK}")] = _json(checkpoint, _mark_bytes(checkpoint, key))
    return {layer: _checked_options(checkpoint, layer, options) for layer, options in layers.items()}


MOST_MARK_BYTES = 4096


def _mark_bytes(checkpoint: Checkpoint, key: str) -> bytes:
    mark = checkpoint.entries[key]
    if len(mark.shape) != 1 or mark.shape[0] > MOST_MARK_BYTES or (value := mark.read()).dtype != torch.uint8:
        raise UnusableFile(f"{checkpoint.path}: {key} does not hold the bytes of a JSON object")
    return bytes(value.tolist())


def _json(checkpoint: Checkpoint, text: str | bytes) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableFile(f"{checkpoint.path}: what it says of its quantised layers is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnusableFile(f"{checkpoint.path}: what it says of its quantised layers is not a JSON object")
    return value


def _checked_options(checkpoint: Checkpoint, layer: str, options: object) -> dict:
    name = options.get("format") if isinstance(options, dict) else None
    if not isinstance(name, str):
        raise UnusableFile(f"{checkpoint.path}: {layer} is marked as quantised without the name of a format")
    return options


def _formats_by_scales(checkpoint: Checkpoint) -> dict[str, dict]:
    """Scaled fp8 without marks: layers with a scale beside a weight of eight bits."""
    layers: dict[str, dict] = {}
    for key in checkpoint:
        layer, _, part = key.rpartition(".")
        if part not in SCALES or f"{layer}.{MARK}" in checkpoint.entries:
            continue
        if layer in layers:
            raise UnusableFile(f"{checkpoint.path}: {layer}.weight has two scales, {' and '.join(SCALES)}")
        if f"{layer}.weight" not in checkpoint.entries:
            raise UnusableFile(f"{checkpoint.path}: {key} is there and {layer}.weight, which it scales, is missing")
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
            f"{checkpoint.path}: {layer}.weight has a scale and holds {dtype}; float8_e4m3fn or float8_e5m2 is read "
            "with one"
        )
    return name


def _quantised_entry(checkpoint: Checkpoint, layer: str, options: Mapping) -> Entry:
    """A layer's weight as one entry; UnusableFile where the layer cannot be brought back."""
    format = _known_format(checkpoint, layer, options)
    parts = _parts(checkpoint, layer)
    for name in ("weight", *format.needs):
        if name not in parts:
            raise UnusableFile(f"{checkpoint.path}: {layer} is quantised as {format.name} and lacks its {name}")
    stored = parts["weight"]
    shape = format.shape(stored.shape)
    if shape is None:
        raise UnusableFile(
            f"{checkpoint.path}: {layer}.weight has the shape {list(stored.shape)}, which {format.name} cannot have"
        )
    _check_scale(checkpoint, layer, format, parts, shape)
    return Entry(shape, stored.read, _value_of(checkpoint, layer, format, parts, shape))


def _known_format(checkpoint: Checkpoint, layer: str, options: Mapping) -> Format:
    extra = [name for name in ("convrot", "params") if options.get(name)]
    extra += ["pre_quant_scale"] if f"{layer}.pre_quant_scale" in checkpoint.entries else []
    format = FORMATS.get(options["format"])
    if format is None or extra:
        name = " with ".join([options["format"] or "no format", *extra])
        raise UnusableFile(
            f"{checkpoint.path}: {layer} is quantised as {name}, which is unsupported ({', '.join(FORMATS)} are "
            "supported); get the file in bf16 and choose weight_dtype fp8_e4m3fn or int8_bnb"
        )
    return format


def _parts(checkpoint: Checkpoint, layer: str) -> dict[str, Entry]:
    """A layer's weight and scales; both names of a scale become one."""
    names = {"weight": "weight", "weight_scale_2": "weight_scale_2", **dict.fromkeys(SCALES, "weight_scale")}
    return {
        name: checkpoint.entries[f"{layer}.{stored}"]
        for stored, name in names.items()
        if f"{layer}.{stored}" in checkpoint.entries
    }


def _check_scale(checkpoint, layer: str, format: Format, parts: Mapping[str, Entry], shape: tuple[int, ...]) -> None:
    if "weight_scale" not in parts:
        return
    count = math.prod(parts["weight_scale"].shape)
    if format.name == "nvfp4":
        wanted = {-(-shape[0] // 128) * 128 * -(-shape[1] // (4 * BLOCK)) * 4}
        whole = math.prod(parts["weight_scale_2"].shape) == 1
    else:
        wanted, whole = {1, shape[0]}, True
    if count not in wanted or not whole:
        raise UnusableFile(
            f"{checkpoint.path}: {layer} has scales of the shape {list(parts['weight_scale'].shape)}, which do not fit "
            f"its {list(shape)} weights stored as {format.name}"
        )


def _value_of(checkpoint, layer: str, format: Format, parts: Mapping[str, Entry], shape: tuple[int, ...]) -> Value:
    def value(dtype: torch.dtype) -> torch.Tensor:
        tensors = {name: entry.read(alone=name == "weight") for name, entry in parts.items()}
        made = torch.empty(shape, dtype=dtype)
        try:
            for start in range(0, shape[0], ROWS):
                rows = slice(start, min(start + ROWS, shape[0]))  # nvfp4's scales go on to a whole tile
                made[rows].copy_(format.rows(tensors, rows))
        except (RuntimeError, IndexError) as error:
            raise UnusableFile(f"{checkpoint.path}: {layer} does not fit its format {format.name} ({error})") from error
        return made

    return value


def set_values(module: torch.nn.Module, values: Mapping[str, Value], dtype: torch.dtype) -> None:
    """Give each quantised weight of a module its floating value in ``dtype``, in place."""
    for name, value in values.items():
        module.get_parameter(name).data = value(dtype)
