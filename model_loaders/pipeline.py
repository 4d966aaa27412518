"""Load a diffusers pipeline folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .files.checkpoint import UnusableFile, brief
from .files.open import read_json

if TYPE_CHECKING:  # the command line checks folders without torch
    from .text_encoder import LoadedTextEncoder
    from .transformer import LoadedTransformer
    from .vae import LoadedVae

PARTS = ("transformer", "text_encoder", "tokenizer", "vae")


@dataclass(frozen=True)
class LoadedPipeline:
    transformer: LoadedTransformer
    text_encoder: LoadedTextEncoder
    vae: LoadedVae


def load_pipeline(path: Path) -> LoadedPipeline:
    """All three models of a SANA pipeline folder, with memory-mapped weights."""
    from .text_encoder import load_text_encoder
    from .transformer import load_transformer
    from .vae import load_vae

    check_pipeline(path)
    return LoadedPipeline(
        _with_shift(load_transformer(path / "transformer"), path / "scheduler" / "scheduler_config.json"),
        load_text_encoder(path / "text_encoder", path / "tokenizer"),
        load_vae(path / "vae"),
    )


def _with_shift(transformer: LoadedTransformer, config: Path) -> LoadedTransformer:
    """The transformer with the flow shift of its pipeline, if the scheduler's config has one."""
    scheduler = read_json(config) if config.is_file() else {}
    shift = scheduler.get("flow_shift", scheduler.get("shift"))
    if transformer.spec.family.uses_angles or not isinstance(shift, (int, float)) or not 0 < shift <= 100:
        return transformer
    return replace(transformer, spec=replace(transformer.spec, flow_shift=float(shift)))


def check_pipeline(path: Path) -> str:
    """The pipeline's class name; UnusableFile or FileNotFoundError if the folder is not a complete SANA pipeline."""
    index = path / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{path} has no model_index.json; give a folder in diffusers' layout")
    name = read_json(index).get("_class_name", "unknown")
    if "Sana" not in str(name):  # LongSANA's too
        raise UnusableFile(f"{path} is a {brief(name)}, not a SANA pipeline")
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{path} has no folder {', '.join(missing)}; download the complete pipeline")
    return name
