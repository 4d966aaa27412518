"""A fresh ComfyUI for tests in a browser: the pack, ComfyUI's own example image, and no models."""

from __future__ import annotations

import shutil
from pathlib import Path

import tiny

FOLDERS = ("models", "input", "output", "custom_nodes", "user", "temp")


def home(folder: Path, with_pack: bool = True) -> Path:
    """Make the base directory of a ComfyUI."""
    folder.mkdir(exist_ok=True)
    for name in FOLDERS:
        (folder / name).mkdir()
    shutil.copy(tiny.COMFYUI / "input" / "example.png", folder / "input")
    if with_pack:
        (folder / "custom_nodes" / "sana-nodes").symlink_to(tiny.REPOSITORY, target_is_directory=True)
    return folder
