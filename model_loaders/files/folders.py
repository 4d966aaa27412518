"""Model files by name under a list of root folders, as ComfyUI's loaders name them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".ckpt")
DEPTH = 4


def _walk(root: Path, depth: int) -> Iterable[tuple[Path, list[str]]]:
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    yield root, [entry.name for entry in entries]
    if depth > 0:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _walk(Path(entry.path), depth - 1)


def list_folders(roots: Iterable[Path], marker: str) -> list[str]:
    """Folders that hold a file called ``marker``, relative to their root, with forward slashes."""
    found = []
    for root in roots:
        for folder, names in _walk(Path(root), DEPTH):
            if marker in names and folder != Path(root):
                found.append(folder.relative_to(root).as_posix())
    return sorted(set(found))


def list_models(roots: Iterable[Path]) -> list[str]:
    """Weight files and folders with a config.json; the files inside such a folder are not listed."""
    found = []
    for root in roots:
        inside = None
        for folder, names in _walk(Path(root), DEPTH):
            if inside is not None and inside in folder.parents:
                continue
            name = folder.relative_to(root).as_posix()
            if "config.json" in names and folder != Path(root):
                found.append(name)
                inside = folder
                continue
            found += [(Path(name) / n).as_posix() for n in names if n.endswith(WEIGHT_SUFFIXES)]
    return sorted(set(found))


def find_model(roots: Iterable[Path], name: str, what: str) -> Path:
    """The path of ``name`` under the first root that has it.

    FileNotFoundError with the name and the folders if there is none, ValueError for a name outside of the
    roots (absolute, or with ``..``).
    """
    roots = [Path(root) for root in roots]
    parts = Path(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or Path(name).drive:
        raise ValueError(f"{name[:200]!r} is not the name of a {what}: give it relative to the model folder")
    for root in roots:
        if _exists(root / parts):
            return root / parts
    searched = ", ".join(str(root) for root in roots) or "no folder at all"
    raise FileNotFoundError(f"no {what} called {name[:200]!r}; looked in {searched}")


def _exists(path: Path) -> bool:
    """Whether a path exists; False for a path that the system does not support."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
