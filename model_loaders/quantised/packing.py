"""Quantise matrices to ComfyUI's formats; formats.py reads what this makes.

Nothing here looks at a value on the CPU, so that it also works on the meta device, where it gives shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch.nn import functional

from .formats import BLOCK, E8M0_BIAS, MX_BLOCK

LARGEST_E4M3, LARGEST_E2M1, LARGEST_INT8 = 448.0, 6.0, 127.0
SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest scale: rows and blocks of zeros have no other."""

ROWS = 512
"""Rows that are quantised at a time."""

Rows = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class Packing:
    """How to quantise to a format.

    ``rows``: the stored rows and their scales, of float32 rows [n, columns] and the scale of the tensor. ``block``:
    rows and columns are filled up to multiples of it, and scales stored in cuBLAS' tiles; 0 for neither.
    ``divisor``: the tensor's largest magnitude by this is its scale. ``tensor_scale``: the key of that; None where it
    is not stored.
    """

    format: str
    rows: Rows
    block: int = 0
    divisor: float = 1.0
    tensor_scale: str | None = None

    def quantise(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """``weight`` and its scales of a matrix [rows, columns] of any floating-point dtype."""
        largest = torch.stack([some.abs().amax() for some in weight.split(ROWS)]).amax().float()
        scale = (largest / self.divisor).clamp(min=SMALLEST)
        pieces = [self.rows(self._filled(some.float()), scale) for some in weight.split(ROWS)]
        parts = {"weight": self._filled_rows(torch.cat([stored for stored, _ in pieces]))}
        scales = [of_rows for _, of_rows in pieces if of_rows is not None]
        if scales:
            parts["weight_scale"] = _tiled(torch.cat(scales)) if self.block else torch.cat(scales)
        if self.tensor_scale:
            parts[self.tensor_scale] = scale
        return parts

    def _filled(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.pad(rows, (0, -rows.shape[1] % self.block)) if self.block else rows

    def _filled_rows(self, stored: torch.Tensor) -> torch.Tensor:
        missing = -len(stored) % self.block if self.block else 0
        return torch.cat([stored, stored.new_zeros(missing, stored.shape[1])]) if missing else stored


def _float8_rows(rows: torch.Tensor, scale: torch.Tensor):
    return (rows / scale).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn), None


def _int8_rows(rows: torch.Tensor, scale: torch.Tensor):
    """A scale per row [n, 1]; the tensor's is not used."""
    scales = (rows.abs().amax(1, keepdim=True) / LARGEST_INT8).clamp(min=SMALLEST)
    return (rows / scales).round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scales


def _mxfp8_rows(rows: torch.Tensor, scale: torch.Tensor):
    """The power of two per block by which every value fits into float8, as its exponent plus 127."""
    blocks = rows.unflatten(1, (-1, MX_BLOCK))
    needed = (blocks.abs().amax(2) / LARGEST_E4M3).clamp(min=SMALLEST)
    exponents = needed.log2().ceil()
    values = (blocks * torch.exp2(-exponents)[..., None]).clamp(-LARGEST_E4M3, LARGEST_E4M3)
    return values.flatten(1).to(torch.float8_e4m3fn), (exponents + E8M0_BIAS).to(torch.uint8)


def _nvfp4_rows(rows: torch.Tensor, scale: torch.Tensor):
    """Two four-bit floats per byte, the first in its upper half; a float8 scale per 16 of them."""
    blocks = rows.unflatten(1, (-1, BLOCK))
    wanted = blocks.abs().amax(2) / LARGEST_E2M1 / scale
    scales = wanted.clamp(max=LARGEST_E4M3).to(torch.float8_e4m3fn)
    true = scales.float() * scale
    values = torch.where(true[..., None] > 0, blocks / true.clamp(min=SMALLEST)[..., None], 0.0)
    codes = _e2m1_codes(values.flatten(1))
    return (codes[:, 0::2] << 4) | codes[:, 1::2], scales


def _e2m1_codes(values: torch.Tensor) -> torch.Tensor:
    """The nearest four-bit float, a tie to the even code: three bits of magnitude (formats.E2M1) and the sign's."""
    size = values.abs()
    codes = (size > 0.25).to(torch.uint8)
    for above in (size >= 0.75, size > 1.25, size >= 1.75, size > 2.5, size >= 3.5, size > 5.0):
        codes += above
    return codes + (values < 0).to(torch.uint8) * 8


def _tiled(scales: torch.Tensor) -> torch.Tensor:
    """Scales [rows, blocks] in cuBLAS' tiles of 128 rows and 4 columns, filled up with zeros."""
    rows, columns = scales.shape
    bytes_ = functional.pad(scales.view(torch.uint8), (0, -columns % 4, 0, -rows % 128))
    axes = {"outer": 4, "inner": 32, "four": 4}
    tiles = rearrange(bytes_, "(down outer inner) (across four) -> (down across inner) (outer four)", **axes)
    return tiles.reshape(bytes_.shape).view(scales.dtype)


PACKINGS = {
    "fp8": Packing("float8_e4m3fn", _float8_rows, divisor=LARGEST_E4M3, tensor_scale="weight_scale"),
    "int8": Packing("int8_tensorwise", _int8_rows),
    "nvfp4": Packing("nvfp4", _nvfp4_rows, BLOCK, LARGEST_E4M3 * LARGEST_E2M1, "weight_scale_2"),
    "mxfp8": Packing("mxfp8", _mxfp8_rows, MX_BLOCK),
}
"""By the name that the command line has for it."""
