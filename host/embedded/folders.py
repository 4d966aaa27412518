"""Where the embedded host reads and writes: ComfyUI's folder names under chosen places."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..contract import SaveTarget

KINDS = ("diffusers", "diffusion_models", "checkpoints", "text_encoders", "vae", "loras", "controlnet")


def _base() -> Path:
    return Path(os.environ.get("SANA_NODES_HOME", Path.cwd()))


@dataclass
class Folders:
    """models/KIND, input and output, below the working directory unless set."""

    models: list[Path] = field(default_factory=lambda: [_base() / "models"])
    input: Path = field(default_factory=lambda: _base() / "input")
    output: Path = field(default_factory=lambda: _base() / "output")

    def roots(self, kind: str) -> list[Path]:
        return [Path(root) / kind for root in self.models]

    def save_target(self, prefix: str) -> SaveTarget:
        """Where files of ``prefix``, which may name folders, are saved next; ValueError where it leaves the output."""
        stem = inside(self.output, prefix)
        stem.parent.mkdir(parents=True, exist_ok=True)
        taken = (re.match(rf"{re.escape(stem.name)}_(\d+)_?(\.|$)", file.name) for file in stem.parent.iterdir())
        number = max((int(match[1]) for match in taken if match), default=0) + 1
        return SaveTarget(stem.parent, stem.name, number, stem.parent.relative_to(self.output.resolve()).as_posix())


def inside(folder: Path, name: str) -> Path:
    """``name`` below ``folder``; ValueError where it would lead out of it."""
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{name!r} leads out of {folder}; give a name inside it")
    return path
