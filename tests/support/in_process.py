"""The real ComfyUI in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny


def start_comfyui(home: Path) -> None:
    """Import the real ComfyUI into this process, on the CPU, with ``home`` as its base directory."""
    if "comfy.model_management" in sys.modules:
        return
    sys.path.insert(0, str(tiny.COMFYUI))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(home)]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import comfy.model_management
        import folder_paths  # noqa: F401
    finally:
        sys.argv = arguments


@contextmanager
def comfyui(home: Path) -> Iterator:
    """Nodes run in the real ComfyUI within it; gives that host."""
    from sana_nodes import host as hosts

    start_comfyui(home)
    try:
        yield hosts.use("comfyui")
    finally:
        hosts._current = None
