"""Where the embedded host reads and writes: ComfyUI's folder names below chosen folders. Imports no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ...media.prefixes import expanded
from ...model_loaders.files.folders import demo_roots
from ..contract import SaveTarget

KINDS = ("diffusers", "diffusion_models", "checkpoints", "text_encoders", "vae", "loras", "controlnet")
SUBFOLDERS = {"diffusion_models": ("unet", "diffusion_models"), "text_encoders": ("text_encoders", "clip")}
"""Where ComfyUI looks for a kind, in its order, if not only in the folder of the kind's name."""

ANNOTATIONS = {"[output]": "output", "[input]": "input", "[temp]": "temp"}
"""What a file's name may end with in a workflow, and the folder that it names."""


def _base() -> Path:
    return Path(os.environ.get("SANA_NODES_HOME", Path.cwd()))


@dataclass
class Folders:
    """models/KIND, input, output, temp and user, below the working directory unless set.

    ``preferred`` and ``more``: further folders of a kind, before and after those.
    """

    models: list[Path] = field(default_factory=lambda: [_base() / "models"])
    input: Path = field(default_factory=lambda: _base() / "input")
    output: Path = field(default_factory=lambda: _base() / "output")
    temp: Path = field(default_factory=lambda: _base() / "temp")
    user: Path = field(default_factory=lambda: _base() / "user")
    preferred: dict[str, list[Path]] = field(default_factory=dict)
    more: dict[str, list[Path]] = field(default_factory=dict)

    def roots(self, kind: str) -> list[Path]:
        """The folders that hold models of a kind, the first one first; the pack's demo models come last."""
        usual = [Path(root) / name for root in self.models for name in SUBFOLDERS.get(kind, (kind,))]
        return [*self.preferred.get(kind, []), *usual, *self.more.get(kind, []), *demo_roots(kind)]

    def input_file(self, name: str) -> Path:
        """The path of a file that a workflow names: below input, or with ``[output]`` or ``[temp]`` at its end there.

        Links are followed wherever they lead; FileNotFoundError for a file that is missing, ValueError for a name
        that leaves its folder.
        """
        folder, rest = self.input, name
        for ending, kind in ANNOTATIONS.items():
            if name.endswith(ending):
                folder, rest = getattr(self, kind), name[: -len(ending) - 1]
        path = _below(folder, rest)
        if not _is_file(path):
            raise FileNotFoundError(f"there is no file {rest[:200]!r} in {folder}")
        return path

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


def _below(folder: Path, name: str) -> Path:
    """``name`` below ``folder`` by its letters alone, so that a link in between counts as what it is called."""
    base = os.path.abspath(folder)  # noqa: PTH100 - resolve() follows links
    path = Path(os.path.abspath(os.path.join(base, name)))  # noqa: PTH100, PTH118
    if not path.is_relative_to(base):
        raise ValueError(f"{name!r} leads out of {folder}; give a name inside it")
    return path


def _is_file(path: Path) -> bool:
    """Whether a path is a file; one that the system cannot even look for is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
