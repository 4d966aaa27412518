"""What a model file is, from its headers: family, parameters, dtypes and bytes. No tensor is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ...networks.families import FAMILIES
from ...networks.latent_spaces import DC_AE, LTX2, WAN, LatentSpace, space_of
from .checkpoint import UnusableFile
from .kinds import PREFIX, Description, Kind, describe, of_variant
from .open import PYTORCH_SUFFIXES, config_of_file, open_header, weight_files

PARTS = ("transformer", "text_encoder", "vae")
"""The parts of a pipeline folder that have weights."""

SPACES = {Kind.DC_AE: DC_AE, Kind.WAN_VAE: WAN, Kind.LTX2_VAE: LTX2}
EMBEDDINGS = ("patch_embed.proj.weight", "patch_embedding.weight", "x_embedder.proj.weight")
"""A transformer's first layer, whose second dimension are the latent's channels."""

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}
"""Bytes of a value by safetensors' name of its dtype; all others have one."""

NAMES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8_e4m3fn", "F8_E5M2": "fp8_e5m2"}
FLOATING = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8_e4m3fn": 1, "fp8_e5m2": 1, "int8_bnb": 1}
"""weight_dtype to bytes of a value; int8_bnb's are of linear layers, which hold nearly all."""


@dataclass(frozen=True)
class Facts:
    """Of one model. ``kind`` is None if it is not recognised; ``dtype``: that of most parameters.

    ``nbytes``: of the weights as they are stored. ``channels``: of a transformer's latents, else 0.
    """

    kind: Kind | None
    parameters: int
    dtype: str
    nbytes: int
    channels: int = 0

    def memory(self, weight_dtype: str = "default") -> int:
        """Bytes of the weights in a weight_dtype."""
        size = FLOATING.get(weight_dtype)
        return self.nbytes if size is None else self.parameters * size


def facts_of(path: Path) -> Facts:
    """The facts of a file or folder; UnusableFile if it has no header that can be read.

    A PyTorch file has none: only its size is told.
    """
    files = weight_files(Path(path))
    states = [file.stat() for file in files]
    found = _read(tuple(files), tuple((state.st_mtime_ns, state.st_size) for state in states))
    if found.kind is None:
        return found
    return replace(found, kind=of_variant(Description(found.kind), Path(path), config_of_file(Path(path))).kind)


@lru_cache(maxsize=256)
def _read(files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> Facts:
    if any(file.suffix in PYTORCH_SUFFIXES for file in files):
        return Facts(None, 0, "", sum(size for _, size in states))
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        handle = open_header(file, "np")
        for key in handle.keys():  # noqa: SIM118 - a safetensors handle, no dict
            part = handle.get_slice(key)
            shapes[key] = str(part.get_dtype()), tuple(part.get_shape())
    return _summed(shapes)


def _summed(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> Facts:
    counts: Counter[str] = Counter()
    for dtype, shape in shapes.values():
        counts[dtype] += math.prod(shape)
    found, common = describe(shapes), counts.most_common(1)
    return Facts(
        None if found is None else found.kind,
        sum(counts.values()),
        NAMES.get(common[0][0], common[0][0].lower()) if common else "",
        sum(count * SIZES.get(dtype, 1) for dtype, count in counts.items()),
        next((shapes[key][1][1] for key in _embeddings(shapes) if len(shapes[key][1]) > 3), 0),
    )


def _embeddings(shapes: Mapping) -> list[str]:
    return [key for name in EMBEDDINGS for key in (name, PREFIX + name) if key in shapes]


def latent_space(path: Path) -> LatentSpace | None:
    """The latent space of a transformer or an autoencoder; None if it cannot be told."""
    try:
        found = facts_of(path)
    except (OSError, UnusableFile):
        return None
    if found.kind in SPACES:
        return SPACES[found.kind]
    family = FAMILIES.get(found.kind.key) if found.kind else None
    return space_of(found.channels, family.video) if family else None
