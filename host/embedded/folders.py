"""Where the embedded host reads and writes: ComfyUI's folder names under chosen places."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

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
