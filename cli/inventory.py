"""What model files are there, what each one is, and what an example workflow lacks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..host.embedded.folders import KINDS, Folders
from ..model_loaders.files import folders
from ..model_loaders.files.kinds import (
    IMAGE_VAES,
    TRANSFORMERS,
    VIDEO_TRANSFORMERS,
    VIDEO_VAES,
    Kind,
    describe,
    of_variant,
)
from ..model_loaders.files.listing import kinds_of
from ..model_loaders.files.open import checkpoint_keys, config_of_file
from ..model_loaders.pipeline import check_pipeline
from .calls import EXAMPLES, find_comfyui
from .console import printable


def report(roots: list[Path] | None, comfyui: Path | None, examples: Path) -> list[str]:
    """Lines for a person: every model found, then what each example workflow lacks."""
    searched, notes = _places(roots, comfyui)
    problems: list[folders.Problem] = []
    lines = [f"  {kind}/{name}: {what}" for kind in KINDS for name, what in found(searched, kind, problems)]
    if all("-demo" in line.split(":")[0] for line in lines):
        lines.append("  none: sana-nodes get lists the published models and downloads them here")
    lines = [f"models in {', '.join(str(root) for root in searched.models)}", *notes, *lines]
    unread = dict.fromkeys(f"  skipped: {problem.path}: {problem.reason}" for problem in problems)
    lines += unread
    lines += [f"  missing: {what}" for what in missing_parts(searched)]
    lines.append("example workflows")
    for example in sorted(examples.glob("*.json")):
        missing = lacking(json.loads(example.read_text(encoding="utf-8")), searched)
        lines.append(f"  {example.name}: {'can run' if not missing else 'lacks ' + ', '.join(missing)}")
    return lines


def _places(roots: list[Path] | None, comfyui: Path | None) -> tuple[Folders, list[str]]:
    """Where to look, and lines about what a ComfyUI's extra_model_paths.yaml adds."""
    from .extra_paths import add_extra_paths

    if roots is not None:
        return Folders(models=roots), []
    if comfyui is None:
        return Folders(), []
    searched = Folders(models=[comfyui / "models"])
    wrong = add_extra_paths(searched, comfyui)
    extra = [f"  and {kind} in {path}" for k in (searched.preferred, searched.more) for kind in k for path in k[kind]]
    return searched, [*extra, *([f"  skipped: {wrong}"] if wrong else [])]


def missing_parts(searched: Folders) -> list[str]:
    """What the transformers that lie alone need beside them, with where the published one goes."""

    def kinds(*names: str) -> set[Kind]:
        return {kind for name in names for path in _paths(searched, name) for kind in kinds_of(path) or ()}

    transformers = kinds("diffusion_models", "checkpoints") & set(TRANSFORMERS)
    encoders, autoencoders = kinds("text_encoders"), kinds("vae")
    lines = []
    if transformers and Kind.GEMMA2 not in encoders:
        lines.append("a Gemma-2 text encoder, in text_encoders: sana-nodes get gemma-2-2b-it")
    if transformers - set(VIDEO_TRANSFORMERS) and not autoencoders & set(IMAGE_VAES):
        lines.append("DC-AE, the VAE of SANA's images, in vae: sana-nodes get dc-ae-1.1")
    if transformers & set(VIDEO_TRANSFORMERS) and not autoencoders & set(VIDEO_VAES):
        lines.append("a video VAE, in vae: wan_2.1_vae.safetensors for 480p, the LTX-2 video VAE's folder for 720p")
    return lines


def _paths(searched: Folders, kind: str) -> list[Path]:
    roots = searched.roots(kind)
    return [folders.find_model(roots, name, "model") for name in folders.list_models(roots)]


def found(searched: Folders, kind: str, problems: list[folders.Problem] | None = None) -> list[tuple[str, str]]:
    """Name and description of each model of a kind; ``problems`` gets what cannot be read."""
    roots = searched.roots(kind)
    if kind == "diffusers":
        return [(name, _pipeline(roots, name)) for name in folders.list_folders(roots, "model_index.json", problems)]
    return [(name, _checkpoint(roots, name)) for name in folders.list_models(roots, problems)]


def _pipeline(roots: list[Path], name: str) -> str:
    try:
        return check_pipeline(folders.find_model(roots, name, "pipeline folder"))
    except (OSError, ValueError) as error:
        return f"unusable: {error}"


def _checkpoint(roots: list[Path], name: str) -> str:
    try:
        path = folders.find_model(roots, name, "model")
        found = describe(checkpoint_keys(path))
        return of_variant(found, path, config_of_file(path)).label if found else "not recognised"
    except (OSError, ValueError) as error:
        return f"unusable: {error}"


def lacking(graph: dict, searched: Folders) -> list[str]:
    """The model files that a workflow names and that are not there."""
    missing = []
    for node in graph.values():
        for class_type, (key, kinds) in folders.LOADERS.items():
            if node["class_type"] != class_type:
                continue
            name = node["inputs"][key]
            roots = [root for kind in kinds for root in searched.roots(kind)]
            try:
                folders.find_model(roots, name, "model")
            except (FileNotFoundError, ValueError):
                missing.append(f"models/{kinds[0]}/{name}")
    return missing


def models_command(options: argparse.Namespace) -> int:
    """Print the report; ``options``: models."""
    for line in report([options.models] if options.models else None, find_comfyui(), EXAMPLES):
        print(printable(line))
    return 0
