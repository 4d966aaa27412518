"""The files that a loader lists, identified by their headers, without reading tensors.

ComfyUI requests these lists whenever it shows a loader, so nothing heavy is imported, and results are
cached until a file changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from . import folders
from .checkpoint import UnusableFile
from .kinds import Description, Kind, describe, kinds_of_config, of_variant
from .open import PYTORCH_SUFFIXES, config_of_file, header_keys, read_json, weight_files


def models_of_kind(roots: Iterable[Path], kinds: tuple[Kind, ...]) -> list[str]:
    """Names of the models under ``roots`` that are one of ``kinds``, or whose kind is not known.

    The kind of a PyTorch file is not known until it is opened. A file that cannot be read is listed too,
    so that selecting it shows the error.
    """
    roots = list(roots)
    names = []
    for name in folders.list_models(roots):
        known = kinds_of(folders.find_model(roots, name, "model"))
        if known is None or set(known) & set(kinds):
            names.append(name)
    return names


def kinds_of(path: Path) -> tuple[Kind, ...] | None:
    """The possible kinds of a file or folder; () for an unknown kind, None if it cannot be determined."""
    try:
        if path.is_dir() and (named := kinds_of_config(read_json(path / "config.json"))):
            return named
        found, config = _kinds_of_file(weight_files(path)[0]), config_of_file(path)
        return found and tuple(of_variant(Description(kind), path, config).kind for kind in found)
    except (OSError, UnusableFile):
        return None


def _kinds_of_file(file: Path) -> tuple[Kind, ...] | None:
    if file.suffix in PYTORCH_SUFFIXES:
        return None
    state = file.stat()
    return _kinds_of_header(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _kinds_of_header(file: Path, changed: int, size: int) -> tuple[Kind, ...] | None:
    try:
        found = describe(header_keys(file))
    except UnusableFile:
        return None
    return () if found is None else (found.kind,)
