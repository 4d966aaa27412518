"""Load Gemma-2, SANA's text encoder: a Hugging Face folder or one file to a module and its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..networks.text_encoder import TextEncoderSpec, TokenEmbedding
from .files.build import build_empty, load_strictly
from .files.checkpoint import Checkpoint, UnusableFile, Value
from .files.kinds import Kind, describe, require_kind
from .files.open import open_checkpoint, read_json, refuse_pointer
from .gemma_tokenizer import load_spiece

logger = logging.getLogger(__name__)

HINT = "Give Sana Load Text Encoder gemma-2-2b-it, its folder or one safetensors file (models/text_encoders)."
GATED = (
    "Gemma-2's own repository is gated, and a download without accepting its licence has no weights; "
    "the folder text_encoder of a SANA pipeline has the same weights"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")

SPIECE, EMBEDDING = "spiece_model", "embed_tokens.weight"
UNUSED = (SPIECE, "lm_head.weight", "logit_scale", "rotary_emb.inv_freq")
"""Keys that are not weights of Gemma2Model: the tokenizer, the language head, ComfyUI's CLIP scale, a table."""

GEMMA_2_2B = {
    "model_type": "gemma2",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
}
"""The parts of Gemma-2-2B's published config that cannot be read from shapes."""


@dataclass(frozen=True)
class LoadedTextEncoder:
    """``quantised``: weights that a host still has to dequantise (quantised.formats.set_values)."""

    module: object
    tokenizer: object
    spec: TextEncoderSpec
    path: Path
    quantised: Mapping[str, Value] = field(default_factory=dict)


def load_text_encoder(path: Path, tokenizer_folder: Path | None = None) -> LoadedTextEncoder:
    """A Gemma2Model in the dtype of the files, and its tokenizer.

    ``path``: a Hugging Face folder, or one file. The tokenizer is in ``tokenizer_folder``, otherwise inside
    the file (a uint8 tensor ``spiece_model``), otherwise next to the weights, or in a folder tokenizer there
    or one level up.
    """
    path = Path(path)
    checkpoint, pieces = _opened(path)
    config, module = _build(checkpoint)
    quantised = load_strictly(module, checkpoint, rename=lambda key: None if key.endswith(UNUSED) else key)
    module.embed_tokens.__class__ = TokenEmbedding
    tokenizer = _tokenizer(path, tokenizer_folder, pieces)
    spec = TextEncoderSpec(config.hidden_size, config.num_hidden_layers, config.vocab_size)
    if len(tokenizer) > spec.vocabulary:
        raise UnusableFile(
            f"the tokenizer of {path} has {len(tokenizer)} tokens and its weights only {spec.vocabulary}: "
            "they belong to different models"
        )
    return LoadedTextEncoder(module, tokenizer, spec, path, quantised)


def _opened(path: Path) -> tuple[Checkpoint, torch.Tensor | None]:
    """The weights under Gemma2Model's own names, and the SentencePiece model if the file contains one."""
    try:
        checkpoint = open_checkpoint(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {GATED}") from error
    kind = (checkpoint.config or {}).get("model_type", "gemma2")
    if kind != "gemma2":
        raise UnusableFile(f"{checkpoint.config_file} says model_type {kind}, not gemma2. {HINT}")
    pieces = next((checkpoint[key] for key in checkpoint if key.rpartition(".")[2] == SPIECE), None)
    checkpoint = _without_prefix(checkpoint)
    require_kind(checkpoint, (Kind.GEMMA2,), HINT)
    return checkpoint, pieces


def _build(checkpoint: Checkpoint):
    """Gemma2Config and an empty Gemma2Model, from a config.json or otherwise from the tensors' shapes."""
    from transformers import Gemma2Config, Gemma2Model

    file, entries = _config_file(checkpoint)
    if entries is None:
        config = Gemma2Config.from_dict(config_from_shapes(checkpoint))
        return config, build_empty(lambda: Gemma2Model(config))
    try:
        config = Gemma2Config.from_dict(entries)
        return config, build_empty(lambda: Gemma2Model(config))
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise UnusableFile(f"{file} does not describe a Gemma2Model ({error}); download it again") from error


def _without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """The language model's weights without the prefix of their names: ``model.``, or that of a larger file.

    A larger file has a longer prefix than Gemma2ForCausalLM's; only its Gemma weights are used.
    """
    found = [key.removesuffix(EMBEDDING) for key in checkpoint if f".{key}".endswith(f".{EMBEDDING}")]
    prefix = found[0] if len(found) == 1 else ""
    stripped = checkpoint.without_prefix(prefix, only=prefix not in ("", "model."))
    return stripped if describe(stripped) else checkpoint


def _config_file(checkpoint: Checkpoint) -> tuple[Path | None, dict | None]:
    """The config.json of a Gemma-2 (its own or one in its folder) and its contents; None if there is none."""
    if checkpoint.config is not None:
        return checkpoint.config_file, checkpoint.config
    beside = checkpoint.path.parent / "config.json"
    if beside.is_file() and (entries := read_json(beside)).get("model_type") == "gemma2":
        return beside, entries
    return None, None


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a Gemma-2 without one, from shapes; the rest is that of Gemma-2-2B."""
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
    query, key, hidden = (checkpoint.shape(f"layers.0.{name}.weight", 2)[0] for name in names)
    vocabulary, width = checkpoint.shape(EMBEDDING, 2)
    head = GEMMA_2_2B["head_dim"]
    if query % head or key % head:
        raise UnusableFile(
            f"{checkpoint.path}: {query} query and {key} key channels do not divide into heads of {head}, as "
            "Gemma-2-2B's do; put its config.json beside it"
        )
    layers = {name.split(".")[1] for name in checkpoint if name.startswith("layers.")}
    return {
        **GEMMA_2_2B,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": query // head,
        "num_key_value_heads": key // head,
    }


def _tokenizer(path: Path, folder: Path | None, pieces: torch.Tensor | None):
    """The tokenizer inside the file, otherwise the one in the files next to it."""
    if pieces is None or folder is not None:
        return _load_tokenizer(_find_tokenizer(path, folder))
    try:
        return load_spiece(pieces.contiguous().view(torch.uint8).numpy().tobytes(), f"{path}: its {SPIECE}")
    except UnusableFile as error:
        try:
            nearby = _find_tokenizer(path, None)
        except FileNotFoundError:
            raise error from None
        logger.warning("%s. The tokenizer in %s is used.", error, nearby)
        return _load_tokenizer(nearby)


def _find_tokenizer(path: Path, folder: Path | None) -> Path:
    """The folder with the tokenizer for the weights at ``path``."""
    near = path if path.is_dir() else path.parent
    candidates = [folder] if folder else [near, near / "tokenizer", near.parent / "tokenizer"]
    for candidate in candidates:
        if any((candidate / name).is_file() for name in TOKENIZER_FILES):
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"no tokenizer.json or tokenizer.model for {path}; looked in {looked}. Put Gemma-2's tokenizer files there"
    )


def _load_tokenizer(folder: Path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = next(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    refuse_pointer(file)
    if file.name == "tokenizer.model":
        return load_spiece(file.read_bytes(), str(file))
    try:
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<bos>", pad_token="<pad>")
    except Exception as error:
        raise UnusableFile(f"the tokenizer in {folder} cannot be read ({error}); download it again") from error
    if tokenizer.bos_token_id is None or tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        raise UnusableFile(f"the tokenizer in {folder} does not start a prompt with <bos>: it is not Gemma's")
    tokenizer.padding_side = "right"
    return tokenizer
