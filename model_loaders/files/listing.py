"""Which files a loader offers: what is known of each by its header alone, without opening a tensor.

ComfyUI asks for these lists whenever it draws a loader, so nothing heavy is imported and what was read of
a file is remembered until the file changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from . import folders
from .checkpoint import UnusableFile
from .kinds import Kind, describe, kinds_of_config
from .open import PYTORCH_SUFFIXES, header_keys, read_json, weight_files


def models_of_kind(roots: Iterable[Path], kinds: tuple[Kind, ...]) -> list[str]:
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


def kinds_of(path: Path) -> tuple[Kind, ...] | None:
    """What a file or folder may be, () for something unknown, None where it does not tell."""
    try:
        if path.is_dir() and (named := kinds_of_config(read_json(path / "config.json"))):
            return named
        return _kinds_of_file(weight_files(path)[0])
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
