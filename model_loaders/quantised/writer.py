"""Write a SANA transformer in one of ComfyUI's quantised formats, one layer at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ..files.build import placeholder_dtype
from ..files.checkpoint import Checkpoint, Entry
from ..files.whole import written_whole
from .formats import FORMATS, MARK
from .layers import packing_of
from .packing import PACKINGS

SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""Names of dtypes in a safetensors header."""


@dataclass(frozen=True)
class StoredWeight:
    """One weight as it is written.

    ``format``: ComfyUI's name, None for a weight that is kept. ``error``: the root mean square of what was lost over
    that of the weight. ``before``, ``after``: bytes, before in two bytes for each value.
    """

    name: str
    format: str | None
    error: float
    before: int
    after: int


def write_quantised(
    checkpoint: Checkpoint, path: Path, wanted: str, written: Callable[[StoredWeight], None] = lambda weight: None
) -> None:
    """A safetensors file of a transformer's checkpoint in diffusers' naming; ``wanted``: a key of PACKINGS.

    ``written`` is called after each weight. The file appears when it is complete.
    """
    kept = placeholder_dtype(checkpoint)
    plans = {name: packing_of(name, entry.shape, wanted) for name, entry in checkpoint.entries.items()}
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        starts = _write_header(stream, list(_shapes(checkpoint, plans, kept)))
        for name, entry in checkpoint.entries.items():
            weight = _read(entry, torch.float32 if plans[name] else kept)
            parts = _stored(name, weight, plans[name])
            for part, tensor in parts.items():
                _write(stream, starts[part], tensor)
            written(_described(name, weight, plans[name], parts))


def quantised_bytes(shapes: Mapping[str, tuple[int, ...]], wanted: str) -> int:
    """Bytes of the tensors of a transformer with weights of these shapes, kept ones in two bytes each."""
    plans = Counter((tuple(shape), packing_of(name, tuple(shape), wanted)) for name, shape in shapes.items())
    total = 0
    for (shape, plan), count in plans.items():
        empty = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        total += count * sum(part.nbytes for part in _stored("weight", empty, plan).values())
    return total


def _read(entry: Entry, dtype: torch.dtype) -> torch.Tensor:
    """In a mapping that is freed with the tensor: the whole file would stay in memory otherwise."""
    return entry.read(alone=True).to(dtype) if entry.value is None else entry.value(dtype)


def _stored(name: str, weight: torch.Tensor, plan: str | None) -> dict[str, torch.Tensor]:
    """The tensors that are written for a weight, by name."""
    if plan is None:
        return {name: weight}
    packing, layer = PACKINGS[plan], name.removesuffix(".weight")
    parts = packing.quantise(weight.flatten(1))
    stored = FORMATS[packing.format].shape(tuple(parts["weight"].shape))
    options: dict = {"format": packing.format}
    if stored != tuple(weight.shape):
        options["shape"] = list(weight.shape)
    mark = torch.tensor(list(json.dumps(options).encode()), dtype=torch.uint8)
    return {**{f"{layer}.{part}": value for part, value in parts.items()}, f"{layer}.{MARK}": mark}


def _write_header(stream: BinaryIO, parts: list[tuple[str, torch.Tensor]]) -> dict[str, int]:
    """The header of what will be written, tensors without values; returns where each begins.

    Those of wide dtypes are first, so that each begins at a multiple of its width.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, part in sorted(parts, key=lambda named: -named[1].itemsize):
        starts[name], end = end, end + part.nbytes
        span = [starts[name], end]
        header[name] = {"dtype": SAFETENSORS[part.dtype], "shape": list(part.shape), "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _shapes(checkpoint: Checkpoint, plans: Mapping, kept: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """What will be written, without its values."""
    for name, entry in checkpoint.entries.items():
        empty = torch.empty(entry.shape, dtype=torch.float32 if plans[name] else kept, device="meta")
        yield from _stored(name, empty, plans[name]).items()


def _write(stream: BinaryIO, start: int, tensor: torch.Tensor) -> None:
    stream.seek(start)
    stream.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))


def _described(name: str, weight: torch.Tensor, plan: str | None, parts: Mapping[str, torch.Tensor]) -> StoredWeight:
    after, before = sum(part.nbytes for part in parts.values()), 2 * weight.numel()
    if plan is None:
        return StoredWeight(name, None, 0.0, before, after)
    format, layer = FORMATS[PACKINGS[plan].format], name.removesuffix(".weight")
    own = {key.removeprefix(f"{layer}."): value for key, value in parts.items()}
    matrix, lost = weight.flatten(1), 0.0
    for start in range(0, len(matrix), 512):
        rows = slice(start, min(start + 512, len(matrix)))
        found = format.rows(own, rows)[:, : matrix.shape[1]]
        lost += float((found - matrix[rows]).square().sum(dtype=torch.float64))
    whole = float(matrix.square().sum(dtype=torch.float64))
    return StoredWeight(name, format.name, (lost / whole) ** 0.5 if whole else 0.0, before, after)
