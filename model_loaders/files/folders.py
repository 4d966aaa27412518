"""Model files by name under a list of root folders, as ComfyUI's loaders name them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..published import how_to_get

DEMO = Path(__file__).resolve().parents[2] / "demo" / "models"
"""The demo weights that come with the pack, as a models folder."""

LOADERS = {
    "SanaLoadPipeline": ("pipeline", ("diffusers",)),
    "SanaLoadTransformer": ("model_name", ("diffusion_models", "checkpoints")),
    "SanaLoadTextEncoder": ("encoder_name", ("text_encoders",)),
    "SanaLoadVAE": ("vae_name", ("vae",)),
    "SanaLoadLora": ("lora_name", ("loras",)),
    "SanaLoadControlNet": ("control_net_name", ("controlnet",)),
}
"""A loader's class to its input that names a model, and the kinds of folder where that is looked for."""

OLDER_NAMES = ("unet", "clip")
"""Folders that ComfyUI still reads under an older name."""

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".ckpt")
DEPTH = 4
MOST_LINKS = 8
"""How often links may lead to one folder below a root: folders that link to one another would be listed without end."""


@dataclass(frozen=True)
class Problem:
    """An entry of a model folder that is not offered, and why."""

    path: Path
    reason: str


def _walk(root: Path, depth: int, problems: list[Problem], above=(), linked=None) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with the names of its files and folders; what cannot be read is skipped and noted.

    ``above``: the folders that it is in, and ``linked``: how often links led to a folder, by ``_identity``.
    """
    linked = Counter() if linked is None else linked
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        above = (*above, _identity(root))
    except OSError as error:
        if root.exists():
            problems.append(Problem(root, error.strerror or str(error)))
        return
    kinds = {entry.name: _kind(entry, problems) for entry in entries}
    yield root, [name for name, kind in kinds.items() if kind]
    for entry in entries if depth > 0 else ():
        if kinds[entry.name] == "folder" and not entry.name.startswith("."):
            if reason := _why_not_listed(entry, above, linked):
                problems.append(Problem(Path(entry.path), reason))
            else:
                yield from _walk(Path(entry.path), depth - 1, problems, above, linked)


def _identity(folder: Path | str) -> tuple[int, int]:
    state = os.stat(folder)  # noqa: PTH116 - of a DirEntry's path
    return state.st_dev, state.st_ino


def _why_not_listed(entry: os.DirEntry, above: tuple, linked: Counter) -> str | None:
    """The reason to leave out what is below a folder, or None."""
    try:
        identity = _identity(entry.path)
    except OSError as error:
        return error.strerror or str(error)
    if identity in above and identity[1]:
        return "a link to a folder that it is in"
    linked[identity] += entry.is_symlink()
    if entry.is_symlink() and linked[identity] > MOST_LINKS:
        return f"more than {MOST_LINKS} links lead to its folder"
    return None


def _kind(entry: os.DirEntry, problems: list[Problem]) -> str | None:
    """ "file" or "folder", links followed; None for what can be neither opened nor listed, such as a FIFO."""
    try:
        entry.name.encode("utf-8")
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        reason = "a link that leads nowhere" if entry.is_symlink() else "neither a file nor a folder"
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeEncodeError:
        reason = "its name is not valid text"
    problems.append(Problem(Path(entry.path), reason))
    return None


def demo_roots(kind: str) -> list[Path]:
    """The pack's folder of demo models of a kind, the last place to look: none where they were left out."""
    return [root for root in (DEMO / kind,) if root.is_dir()]


def folder_for(roots: Iterable[Path]) -> str:
    """Where a person puts a model of a kind, of the folders where it is looked for: one with today's name."""
    own = [root for root in map(Path, roots) if not root.is_relative_to(DEMO)]
    return str(next((root for root in own if root.name not in OLDER_NAMES), "a models folder"))


def demo_last(names: Iterable[str]) -> list[str]:
    """Names in their order, those of the demo models after the others, so that no demo is chosen by itself."""
    return sorted(names, key=_is_demo)


def _is_demo(name: str) -> bool:
    return "-demo" in name.split("/")[0]


def list_folders(roots: Iterable[Path], marker: str, problems: list[Problem] | None = None) -> list[str]:
    """Folders that hold a file called ``marker``, relative to their root, with forward slashes.

    What cannot be read is skipped, and appended to ``problems``.
    """
    found = []
    for root in roots:
        for folder, names in _walk(Path(root), DEPTH, [] if problems is None else problems):
            if marker in names and folder != Path(root):
                found.append(folder.relative_to(root).as_posix())
    return sorted(set(found))


def list_models(roots: Iterable[Path], problems: list[Problem] | None = None) -> list[str]:
    """Weight files and folders with a config.json; the files inside such a folder are not listed.

    What cannot be read is skipped, and appended to ``problems``.
    """
    found = []
    for root in roots:
        inside = None
        for folder, names in _walk(Path(root), DEPTH, [] if problems is None else problems):
            if inside is not None and inside in folder.parents:
                continue
            name = folder.relative_to(root).as_posix()
            if "config.json" in names and folder != Path(root):
                found.append(name)
                inside = folder
                continue
            found += [(Path(name) / n).as_posix() for n in names if n.endswith(WEIGHT_SUFFIXES)]
    return sorted(set(found))


def find_model(roots: Iterable[Path], name: str, what: str) -> Path:
    """The path of ``name`` under the first root that has it.

    FileNotFoundError with the name and the folders if there is none, ValueError for a name outside of the
    roots (absolute, or with ``..``).
    """
    roots = [Path(root) for root in roots]
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is not the name of a {what}: give a text")
    parts = Path(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or Path(name).drive:
        raise ValueError(f"{name[:200]!r} is not the name of a {what}: give it relative to the model folder")
    for root in roots:
        if _exists(root / parts):
            return root / parts
    searched = ", ".join(str(root) for root in roots) or "no folder at all"
    raise FileNotFoundError(f"no {what} called {name[:200]!r}; looked in {searched}. {_what_to_do(roots, name)}")


def _what_to_do(roots: list[Path], name: str) -> str:
    """Where a missing model goes, and the command that downloads it where it is a published one."""
    command = how_to_get(name)
    advice = f"Put it in {folder_for(roots)}"
    return f"{advice}, or download it with: {command}" if command else advice


def _exists(path: Path) -> bool:
    """Whether a path exists; False for a path that the system does not support."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
