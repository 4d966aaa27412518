"""filename_prefix: what it stands for, and what is wrong with one, found without touching the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from .claims import CannotWrite

LEAST_SPACE = 1 << 20
"""Bytes that must be free before a file is begun."""

LONGEST_TAIL = "_00000_.webp"
"""What follows a prefix in a file's name."""

FORBIDDEN = "\0" + ('<>:"|?*' if os.name == "nt" else "")
NAME_LIMIT, PATH_LIMIT = 255, 4096
"""Bytes of a name and of a path where the file system does not say."""


def expanded(prefix: str, width: int, height: int) -> str:
    """A prefix with ``%width%``, ``%height%``, ``%year%`` … ``%second%`` filled in, as in ComfyUI."""
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    values = {"width": width, "height": height, "year": now.tm_year}
    clock = {"month": now.tm_mon, "day": now.tm_mday, "hour": now.tm_hour, "minute": now.tm_min, "second": now.tm_sec}
    for name, value in {**values, **{name: f"{value:02}" for name, value in clock.items()}}.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    return prefix


def check_prefix(prefix: str, output: Path | None = None) -> None:
    """ValueError or CannotWrite, saying what to give, for a prefix under which nothing can be saved.

    ``output``: the output folder; without it the prefix alone is checked. Nothing is made on the disk.
    """
    _check_text(prefix)
    stem = os.path.normpath(expanded(prefix, 16384, 16384))
    parts = stem.replace(os.sep, "/").split("/")
    if Path(stem).anchor:
        raise ValueError(f"filename_prefix is {prefix!r}, which is absolute; give a name below the output folder")
    if parts[0] == "..":
        raise ValueError(f"filename_prefix is {prefix!r}, which leads out of the output folder; give a name inside it")
    if parts[-1] == ".":
        raise ValueError(f"filename_prefix is {prefix!r}, which is not a name; give one such as video/Sana")
    _check_length(prefix, [*parts[:-1], parts[-1] + LONGEST_TAIL], Path(output or ".").absolute())
    if output is not None:
        check_folder(Path(output) / Path(stem).parent)


def check_folder(folder: Path) -> None:
    """CannotWrite where a file cannot be made in a folder, which need not exist yet."""
    existing = _existing(folder)
    if not existing.is_dir():
        raise CannotWrite(f"cannot write into {folder}: {existing} is not a folder; choose another output folder")
    if not _writable(existing):
        raise CannotWrite(f"cannot write into {folder}: no permission for {existing}; choose another output folder")
    if shutil.disk_usage(existing).free < LEAST_SPACE:
        raise CannotWrite(f"no space is left for {folder}; free some, or choose another output folder")


def _check_text(prefix: str) -> None:
    if not isinstance(prefix, str) or not prefix.strip():
        raise ValueError(f"filename_prefix is {prefix!r}; give a name such as video/Sana")
    found = sorted({character for character in prefix if character in FORBIDDEN})
    try:
        os.fsencode(prefix)
    except UnicodeEncodeError:
        found = ["half of a surrogate pair"]
    if found:
        raise ValueError(f"filename_prefix is {prefix!r}; no file name can hold {', '.join(map(repr, found))}")


def _check_length(prefix: str, names: list[str], folder: Path) -> None:
    """ValueError where a folder's or a file's name is longer than its file system takes."""
    existing = _existing(folder)
    limit, whole = _limit(existing, "PC_NAME_MAX", NAME_LIMIT), _limit(existing, "PC_PATH_MAX", PATH_LIMIT)
    longest = max(len(os.fsencode(name)) for name in names)
    if longest > limit or len(os.fsencode(str(folder.joinpath(*names)))) >= whole:
        raise ValueError(
            f"filename_prefix has {len(os.fsencode(prefix))} bytes, which make a name of {longest}, and the "
            f"output folder takes names of {limit}; give a shorter one"
        )


def _limit(folder: Path, name: str, otherwise: int) -> int:
    try:
        return os.pathconf(folder, name)
    except (AttributeError, OSError, ValueError):
        return otherwise


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next((parent for parent in (folder, *folder.parents) if os.path.lexists(parent)), folder)


def _writable(folder: Path) -> bool:
    if os.name != "nt":
        return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
    try:  # os.access does not see Windows' access lists; this file is gone when it is closed
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
