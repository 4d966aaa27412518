"""What every command shares: an unusable call, where the pack lies, which ComfyUI there is, and files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .console import tell

PACK = Path(__file__).resolve().parent.parent
EXAMPLES = PACK / "example_workflows" / "api"

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

BLOCK = 1 << 22
"""Bytes of a file that are read at a time."""


class BadCall(ValueError):
    """A command line or workflow that cannot be used: exit code 2."""


def failure(error: Exception) -> int:
    """Print why a command failed; its exit code."""
    tell(str(error))
    return 1


def find_comfyui() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names or that this folder is installed in; BadCall for a wrong COMFYUI_PATH."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not _is_comfyui(Path(named)):
            raise BadCall(f"COMFYUI_PATH is {named}, which holds no ComfyUI (no main.py and comfy/)")
        return Path(named)
    around = PACK.parent.parent
    return around if PACK.parent.name == "custom_nodes" and _is_comfyui(around) else None


def _is_comfyui(folder: Path) -> bool:
    return (folder / "comfy").is_dir() and (folder / "main.py").is_file()


def check_output(folder: Path) -> None:
    """BadCall where an output folder cannot be written to; makes none."""
    from ..media.prefixes import check_folder

    try:
        check_folder(folder)
    except OSError as error:
        raise BadCall(f"the output folder cannot be used: {error}") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
