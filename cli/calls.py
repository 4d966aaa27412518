"""What every command shares: an unusable call, where the pack lies, and which ComfyUI there is."""

from __future__ import annotations

import os
from pathlib import Path

from .console import tell

PACK = Path(__file__).resolve().parent.parent
EXAMPLES = PACK / "example_workflows" / "api"


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
