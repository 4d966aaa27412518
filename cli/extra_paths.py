"""The folders that a ComfyUI's extra_model_paths.yaml adds to its own, as its utils/extra_config.py reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..host.embedded.folders import Folders

NAME = "extra_model_paths.yaml"
KINDS = {"unet": "diffusion_models", "clip": "text_encoders"}
"""Older names of kinds, to today's."""


def add_extra_paths(folders: Folders, comfyui: Path) -> str | None:
    """Add what a ComfyUI's file names to ``folders``; returns what is wrong with the file, or None."""
    import yaml

    file = comfyui / NAME
    if not file.is_file():
        return None
    try:
        for kind, path, first in _entries(yaml.safe_load(file.read_text(encoding="utf-8")), file.parent):
            paths = (folders.preferred if first else folders.more).setdefault(kind, [])
            paths.insert(0 if first else len(paths), path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"{file} cannot be used: {' '.join(str(error).split())}"
    return None


def _entries(config: object, beside: Path) -> Iterator[tuple[str, Path, bool]]:
    """Kind, folder, and whether it comes before ComfyUI's own."""
    for section, values in _mapping(config, "it").items():
        values = dict(_mapping(values, section))
        base = os.path.expandvars(os.path.expanduser(str(values.pop("base_path", ""))))  # noqa: PTH111
        first = bool(values.pop("is_default", False))
        for kind, paths in values.items():
            if not isinstance(paths, str):
                raise ValueError(f"{section}.{kind} is not a text")
            for path in filter(None, paths.split("\n")):
                yield KINDS.get(str(kind), str(kind)), Path(os.path.normpath(beside / base / path)), first


def _mapping(value: object, name: str) -> Mapping[Any, Any]:
    if not isinstance(value, (Mapping, type(None))):
        raise ValueError(f"{name} is not a table")
    return value or {}
