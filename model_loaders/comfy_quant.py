"""Files quantised in ComfyUI's formats: their layers are brought back to floating weights on loading.

Such a layer holds ``weight`` in few bits, ``comfy_quant``, the bytes of a JSON object that names the format, and
scales; or the file's metadata names the formats of all layers. See comfy/quant_ops.py and comfy_kitchen. ComfyUI
can compute with some of these as they are; here the answer is that of the weights they stand for.
"""

from __future__ import annotations

import json
import logging
from functools import partial

import torch

from .checkpoints import Checkpoint, UnusableFile

logger = logging.getLogger(__name__)

MARK, METADATA = "comfy_quant", "_quantization_metadata"
SCALES = ("weight_scale", "weight_scale_2", "input_scale")
"""What a layer holds besides its weight; the last is for computing in eight bits, which is not done here."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of a four-bit float; its fourth bit is the sign."""

BLOCK = 16
"""Weights of a row that share one of nvfp4's scales."""


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with floating weights, made when they are asked for; itself where none is quantised.

    UnusableFile for a format that is not known here, naming it.
    """
    formats = _formats(checkpoint)
    if not formats:
        return checkpoint
    gone = {f"{layer}.{name}" for layer in formats for name in (MARK, *SCALES)}
    shapes = {key: shape for key, shape in checkpoint.shapes.items() if key not in gone}
    readers = {key: checkpoint._readers[key] for key in shapes}
    dtype = _common_dtype(checkpoint, shapes.keys() - {f"{layer}.weight" for layer in formats})
    for layer, said in formats.items():
        key = f"{layer}.weight"
        rows, *rest = _checked(checkpoint, layer, said)
        shapes[key] = (rows, rest[0] * 2) if said["format"] == "nvfp4" else (rows, *rest)
        readers[key] = partial(_weight, checkpoint, layer, said["format"], dtype)
    names = ", ".join(sorted({said["format"] for said in formats.values()}))
    word = str(dtype).removeprefix("torch.")
    logger.info("%s: %d layers stored as %s become %s.", checkpoint.path, len(formats), names, word)
    return Checkpoint(checkpoint.path, shapes, checkpoint.config, checkpoint.metadata, readers)


def _formats(checkpoint: Checkpoint) -> dict[str, dict]:
    """What is said of each quantised layer."""
    marks = [key for key in checkpoint if key.endswith(f".{MARK}")]
    try:
        found = json.loads(checkpoint.metadata.get(METADATA, "{}")).get("layers", {})
        found |= {key.removesuffix(f".{MARK}"): json.loads(bytes(checkpoint[key].tolist())) for key in marks}
        return {layer: {"format": "", **said} for layer, said in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UnusableFile(f"{checkpoint.path}: what it says of its quantised layers cannot be read") from error


def _checked(checkpoint: Checkpoint, layer: str, said: dict) -> tuple[int, ...]:
    """The stored weight's shape; UnusableFile where the layer cannot be brought back."""
    known, path = said["format"] in FORMATS, checkpoint.path
    extra = [name for name in ("convrot", "params") if said.get(name)]
    extra += ["pre_quant_scale"] if f"{layer}.pre_quant_scale" in checkpoint.shapes else []
    if not known or extra:
        name = " with ".join([str(said["format"]) or "no format", *extra])
        raise UnusableFile(
            f"{path}: {layer} is quantised as {name}, which is not read here ({', '.join(FORMATS)} are); get the file "
            "in bf16 and choose weight_dtype fp8_e4m3fn or int8_bnb"
        )
    needed = {"nvfp4": SCALES[:2], "int8_tensorwise": SCALES[:1]}.get(said["format"], ())
    for name in ("weight", *needed):
        if f"{layer}.{name}" not in checkpoint.shapes:
            raise UnusableFile(f"{path}: {layer} is quantised as {said['format']} and lacks its {name}")
    shape = checkpoint.shapes[f"{layer}.weight"]
    if not shape or said["format"] == "nvfp4" and len(shape) != 2:
        raise UnusableFile(f"{path}: {layer}.weight has the shape {list(shape)}, which {said['format']} cannot have")
    return shape


def _common_dtype(checkpoint: Checkpoint, keys) -> torch.dtype:
    """The dtype of most weights that are not quantised."""
    dtypes = [checkpoint[key].dtype for key in keys]
    return max((torch.bfloat16, torch.float32, torch.float16), key=dtypes.count)


def _weight(checkpoint: Checkpoint, layer: str, name: str, dtype: torch.dtype) -> torch.Tensor:
    try:
        return FORMATS[name](checkpoint, layer).to(dtype)
    except (RuntimeError, IndexError) as error:
        raise UnusableFile(f"{checkpoint.path}: {layer} does not fit its format {name} ({error})") from error


def _float8(checkpoint: Checkpoint, layer: str, kind: torch.dtype) -> torch.Tensor:
    """One scale for the tensor; none is 1. Old files hold the bytes as uint8."""
    weight = checkpoint[f"{layer}.weight"]
    return (weight.view(kind) if weight.dtype == torch.uint8 else weight).float() * _scale(checkpoint, layer)


def _int8(checkpoint: Checkpoint, layer: str) -> torch.Tensor:
    """One scale for the tensor, or one for each row."""
    weight = checkpoint[f"{layer}.weight"].float()
    scale = _scale(checkpoint, layer)
    return weight * (scale if scale.numel() == 1 else scale.reshape(-1, *[1] * (weight.ndim - 1)))


def _scale(checkpoint: Checkpoint, layer: str) -> torch.Tensor:
    key = f"{layer}.{SCALES[0]}"
    scale = checkpoint[key].float() if key in checkpoint.shapes else torch.ones(())
    return scale.reshape(()) if scale.numel() == 1 else scale


def _nvfp4(checkpoint: Checkpoint, layer: str) -> torch.Tensor:
    """Two four-bit floats in a byte, the first in its upper half; a float8 scale for 16 of them, and one for all.

    The float8 scales lie as cuBLAS wants them: in tiles of 128 rows and 4 columns, of which each holds its rows
    0, 32, 64 and 96 side by side, then 1, 33, 65 and 97, and so on.
    """
    packed = checkpoint[f"{layer}.weight"].view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1).long()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]
    blocks = checkpoint[f"{layer}.{SCALES[0]}"].contiguous().view(torch.float8_e4m3fn).flatten().float()
    row, column = torch.arange(values.shape[0])[:, None], torch.arange(values.shape[1] // BLOCK)[None]
    across = -(-column.shape[1] // 4)
    tile = row // 128 * across + column // 4
    scale = blocks[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4]
    return values * scale.repeat_interleave(BLOCK, dim=1) * checkpoint[f"{layer}.{SCALES[1]}"].float().reshape(())


FORMATS = {
    "float8_e4m3fn": partial(_float8, kind=torch.float8_e4m3fn),
    "float8_e5m2": partial(_float8, kind=torch.float8_e5m2),
    "int8_tensorwise": _int8,
    "nvfp4": _nvfp4,
}
