"""Where the embedded host reads and writes: ComfyUI's folder names under chosen places."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ...media.prefixes import expanded
from ..contract import SaveTarget

KINDS = ("diffusers", "diffusion_models", "checkpoints", "text_encoders", "vae", "loras", "controlnet")


def _base() -> Path:
    return Path(os.environ.get("SANA_NODES_HOME", Path.cwd()))


@dataclass
class Folders:
    """models/KIND, input, output and temp, below the working directory unless set."""

    models: list[Path] = field(default_factory=lambda: [_base() / "models"])
    input: Path = field(default_factory=lambda: _base() / "input")
    output: Path = field(default_factory=lambda: _base() / "output")
    temp: Path = field(default_factory=lambda: _base() / "temp")

    def roots(self, kind: str) -> list[Path]:
        return [Path(root) / kind for root in self.models]

    def save_target(self, prefix: str, width: int, height: int, folder: Path | None = None) -> SaveTarget:
        """Where files of ``prefix``, which may name folders, are saved next below ``folder`` (the output folder).

        As in ComfyUI: what is in the prefix for width, height and the time is filled in, and the number is one
        beyond the highest. The prefix was checked (media.prefixes); a folder in it may be a link.
        """
        folder = Path(self.output if folder is None else folder).absolute()
        stem = Path(os.path.normpath(folder / expanded(prefix, width, height)))
        stem.parent.mkdir(parents=True, exist_ok=True)
        taken = (re.match(rf"{re.escape(stem.name)}_(\d+)_?(\.|$)", file.name) for file in stem.parent.iterdir())
        number = max((int(match[1]) for match in taken if match), default=0) + 1
        return SaveTarget(stem.parent, stem.name, number, stem.parent.relative_to(folder).as_posix())

    def tags(self, prompt: dict | None) -> dict:
        """The tags of a saved file: the graph that made it."""
        return {"prompt": prompt} if prompt else {}


def inside(folder: Path, name: str) -> Path:
    """``name`` below ``folder``; ValueError where it would lead out of it."""
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{name!r} leads out of {folder}; give a name inside it")
    return path
