"""Which files a loader offers: what is known of each by its header alone, without opening a tensor.

ComfyUI asks for these lists whenever it draws a loader, so nothing heavy is imported and what was read of
a file is remembered until the file changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from . import folders
from .checkpoints import PYTORCH_SUFFIXES, UnusableFile, describe, read_json, weight_files

LARGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""

CLASSES = {
    "SanaTransformer2DModel": ("SANA transformer", "SANA-Sprint transformer"),
    "SanaVideoTransformer3DModel": ("SANA-Video transformer",),
    "SanaControlNetModel": ("SANA ControlNet",),
    "AutoencoderDC": ("DC-AE",),
    "AutoencoderKLWan": ("Wan VAE",),
    "AutoencoderKLLTX2Video": ("LTX-2 video VAE",),
    "gemma2": ("Gemma-2 text encoder",),
}
"""What a folder's config.json calls its model, to the kinds that it may be."""


def fitting(roots: Iterable[Path], kinds: tuple[str, ...]) -> list[str]:
    """Names of the models under ``roots`` that are one of ``kinds``, or whose header does not tell.

    A PyTorch file tells nothing until it is opened, and a file that cannot be read is offered so that
    choosing it says why.
    """
    roots = list(roots)
    names = []
    for name in folders.list_models(roots):
        known = kinds_of(folders.find_model(roots, name, "model"))
        if known is None or set(known) & set(kinds):
            names.append(name)
    return names


def kinds_of(path: Path) -> tuple[str, ...] | None:
    """What a file or folder may be, () for something unknown, None where it does not tell."""
    try:
        if path.is_dir():
            config = read_json(path / "config.json")
            said = config.get("_class_name") or config.get("model_type")
            if said in CLASSES:
                return CLASSES[said]
        return _of_file(weight_files(path)[0])
    except (OSError, UnusableFile):
        return None


def _of_file(file: Path) -> tuple[str, ...] | None:
    if file.suffix in PYTORCH_SUFFIXES:
        return None
    state = file.stat()
    return _of_keys(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _of_keys(file: Path, changed: int, size: int) -> tuple[str, ...] | None:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            return None
        try:
            header = json.loads(opened.read(length))
        except (ValueError, RecursionError):
            return None
    if not isinstance(header, dict):
        return None
    kind = describe(header)
    return () if kind is None else (kind,)
