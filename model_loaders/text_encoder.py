"""Gemma-2, SANA's text encoder: a Hugging Face folder or one file to a module and its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..networks.text_encoder import TextEncoderSpec, TokenEmbedding
from .files.build import build_empty, load_strictly
from .files.checkpoint import Checkpoint, Entry, UnusableFile, Value
from .files.kinds import Kind, describe, require_kind
from .files.open import open_checkpoint, read_json, refuse_pointer
from .gemma_config import EMBEDDING, read_config
from .gemma_tokenizer import MOST_BYTES, GemmaTokenizer, load_spiece, load_tokenizer_json

logger = logging.getLogger(__name__)

HINT = "Give Sana Load Text Encoder gemma-2-2b-it, its folder or one safetensors file (models/text_encoders)."
GATED = (
    "Gemma-2's own repository asks for a licence first, and without it a download leaves the weights out; "
    "the folder text_encoder of a SANA pipeline holds the same weights"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")

SPIECE = "spiece_model"
UNUSED = (SPIECE, "lm_head.weight", "logit_scale", "rotary_emb.inv_freq")
"""What files hold besides Gemma2Model's weights: the tokenizer, the language head, ComfyUI's CLIP scale, a table."""


@dataclass(frozen=True)
class LoadedTextEncoder:
    """``quantised``: weights that a host has yet to give their floating values (quantised.formats.set_values)."""

    module: Any
    tokenizer: GemmaTokenizer
    spec: TextEncoderSpec
    path: Path
    quantised: Mapping[str, Value] = field(default_factory=dict)


def load_text_encoder(path: Path, tokenizer_folder: Path | None = None) -> LoadedTextEncoder:
    """A Gemma2Model with the files' own dtype and its tokenizer.

    ``path``: a Hugging Face folder, or one file. The tokenizer lies in ``tokenizer_folder``, else inside
    the file (a uint8 tensor ``spiece_model``), else beside the weights, or in a folder tokenizer there or
    one level up.
    """
    path = Path(path)
    checkpoint, pieces = _opened(path)
    config, module = _build(checkpoint)
    quantised = load_strictly(module, checkpoint, rename=lambda key: None if key.endswith(UNUSED) else key)
    module.embed_tokens.__class__ = TokenEmbedding
    tokenizer = _tokenizer(path, tokenizer_folder, pieces)
    spec = TextEncoderSpec(config.hidden_size, config.num_hidden_layers, config.vocab_size, _new_cache)
    if len(tokenizer) > spec.vocabulary:
        raise UnusableFile(
            f"the tokenizer of {path} knows {len(tokenizer)} tokens and its weights only {spec.vocabulary}: "
            "they belong to different models"
        )
    return LoadedTextEncoder(module, tokenizer, spec, path, quantised)


def _new_cache():
    from transformers import DynamicCache

    return DynamicCache()


def _opened(path: Path) -> tuple[Checkpoint, Entry | None]:
    """The weights under Gemma2Model's own names, and the SentencePiece model that may lie among them."""
    try:
        checkpoint = open_checkpoint(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {GATED}") from error
    kind = (checkpoint.config or {}).get("model_type", "gemma2")
    if kind != "gemma2":
        raise UnusableFile(f"{checkpoint.config_file} says model_type {kind}, not gemma2. {HINT}")
    pieces = next((checkpoint.entries[key] for key in checkpoint if key.rpartition(".")[2] == SPIECE), None)
    checkpoint = _without_prefix(checkpoint)
    require_kind(checkpoint, (Kind.GEMMA2,), HINT)
    return checkpoint, pieces


def _build(checkpoint: Checkpoint):
    """Gemma2Config and an empty Gemma2Model: of a config.json, else of the tensors' shapes."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config.from_dict(read_config(checkpoint, *_config_file(checkpoint)))
    return config, build_empty(lambda: Gemma2Model(config))


def _without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """The language model's weights without what their names begin with: model., or a place in a larger file.

    Of a larger file, which has a longer prefix than Gemma2ForCausalLM's, only Gemma is looked at.
    """
    found = [key.removesuffix(EMBEDDING) for key in checkpoint if f".{key}".endswith(f".{EMBEDDING}")]
    prefix = found[0] if len(found) == 1 else ""
    stripped = checkpoint.without_prefix(prefix, only=prefix not in ("", "model."))
    return stripped if describe(stripped) else checkpoint


def _config_file(checkpoint: Checkpoint) -> tuple[Path | None, dict | None]:
    """The config.json of a Gemma-2, its own or one in its folder, and what it holds; None where there is none."""
    if checkpoint.config is not None:
        return checkpoint.config_file, checkpoint.config
    beside = checkpoint.path.parent / "config.json"
    if beside.is_file() and (entries := read_json(beside)).get("model_type") == "gemma2":
        return beside, entries
    return None, None


def _tokenizer(path: Path, folder: Path | None, pieces: Entry | None) -> GemmaTokenizer:
    """The tokenizer that the file holds, else the one of the files near it."""
    if pieces is None or folder is not None:
        return _load_tokenizer(_find_tokenizer(path, folder))
    try:
        return load_spiece(_bytes_of(pieces, path), f"{path}: its {SPIECE}")
    except UnusableFile as error:
        try:
            beside = _find_tokenizer(path, None)
        except FileNotFoundError:
            raise error from None
        logger.warning("%s. The tokenizer in %s is used.", error, beside)
        return _load_tokenizer(beside)


def _bytes_of(entry: Entry, path: Path) -> bytes:
    """The bytes that a tensor holds, whose shape and dtype are looked at before it is read."""
    if len(entry.shape) != 1 or entry.shape[0] > MOST_BYTES or (tensor := entry.read()).dtype != torch.uint8:
        raise UnusableFile(f"{path}: its {SPIECE} is not a row of at most {MOST_BYTES:,} bytes (uint8)")
    return tensor.numpy().tobytes()


def _find_tokenizer(path: Path, folder: Path | None) -> Path:
    """The folder that holds a tokenizer for weights at ``path``."""
    near = path if path.is_dir() else path.parent
    folders = [folder] if folder else [near, near / "tokenizer", near.parent / "tokenizer"]
    for found in folders:
        if any((found / name).is_file() for name in TOKENIZER_FILES):
            return found
    looked = ", ".join(str(found) for found in folders)
    raise FileNotFoundError(
        f"no tokenizer.json or tokenizer.model for {path}; looked in {looked}. Put Gemma-2's tokenizer files there"
    )


def _load_tokenizer(folder: Path) -> GemmaTokenizer:
    file = next(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    refuse_pointer(file)
    if file.name == "tokenizer.json":
        return load_tokenizer_json(file)
    with file.open("rb") as stream:
        return load_spiece(stream.read(MOST_BYTES + 1), str(file))
