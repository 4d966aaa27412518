"""Gemma-2, SANA's text encoder: a Hugging Face folder to a module and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from .checkpoints import UnusableFile, build_empty, load_strictly, open_checkpoint, require_kind
from .prompts import PromptTokens

KINDS = ("Gemma-2 text encoder",)
HINT = "Give SanaLoadTextEncoder the folder of gemma-2-2b-it (models/text_encoders)."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class TextEncoderSpec:
    """``width``: channels of a hidden state; ``vocabulary``: token ids are below it."""

    width: int
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class LoadedTextEncoder:
    module: object
    tokenizer: object
    spec: TextEncoderSpec
    path: Path


class TokenEmbedding(torch.nn.Embedding):
    """Gemma's token embedding, whose rows are looked up where the table lies and in its own dtype.

    Only the rows then travel to the ids' device and to ``compute_dtype``: the table is 1.2 GB of
    Gemma-2-2B, and computing in float32 over bfloat16 weights must begin at the rows.
    """

    compute_dtype: torch.dtype | None = None

    def forward(self, ids):
        rows = functional.embedding(ids.to(self.weight.device), self.weight)
        rows = rows.to(device=ids.device, dtype=self.compute_dtype or rows.dtype)
        # transformers 5 scales inside the embedding by a buffer; transformers 4 in the model's forward
        scale = getattr(self, "embed_scale", None)
        return rows if scale is None else rows * scale.to(rows)


def load_text_encoder(path: Path, tokenizer_folder: Path | None = None) -> LoadedTextEncoder:
    """A Gemma2Model with the files' own dtype and its tokenizer.

    The tokenizer lies in ``tokenizer_folder``, else in the model's folder, its subfolder tokenizer
    or a sibling of that name.
    """
    path = Path(path)
    if path.is_file():
        raise UnusableFile(f"{path} is one file; give the Hugging Face folder of Gemma-2 with its tokenizer")
    tokenizer_folder = _find_tokenizer(path, tokenizer_folder)
    checkpoint = open_checkpoint(path)
    require_kind(checkpoint, KINDS, HINT)
    if checkpoint.config is None or checkpoint.config.get("model_type") != "gemma2":
        kind = (checkpoint.config or {}).get("model_type", "missing")
        raise UnusableFile(f"{path}/config.json says model_type {kind}, not gemma2. {HINT}")

    from transformers import Gemma2Config, Gemma2Model

    try:
        config = Gemma2Config.from_dict(checkpoint.config)
        module = build_empty(lambda: Gemma2Model(config))
    except Exception as error:
        raise UnusableFile(f"{path}: its config.json does not describe a Gemma2Model ({error})") from error
    load_strictly(module, checkpoint, rename=_without_head)
    module.embed_tokens.__class__ = TokenEmbedding
    tokenizer = _load_tokenizer(tokenizer_folder)
    spec = TextEncoderSpec(config.hidden_size, config.num_hidden_layers, config.vocab_size)
    if len(tokenizer) > spec.vocabulary:
        raise UnusableFile(
            f"the tokenizer in {tokenizer_folder} knows {len(tokenizer)} tokens and {path} only {spec.vocabulary}: "
            "they belong to different models"
        )
    return LoadedTextEncoder(module, tokenizer, spec, path)


def _without_head(key: str) -> str | None:
    """Gemma2ForCausalLM's name of a weight to Gemma2Model's; the language head is not used."""
    return None if key == "lm_head.weight" else key.removeprefix("model.")


def _find_tokenizer(path: Path, folder: Path | None) -> Path:
    places = [folder] if folder else [path, path / "tokenizer", path.parent / "tokenizer"]
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            return place
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(f"no tokenizer.json for {path}; looked in {looked}. Put Gemma-2's tokenizer files there")


def _load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UnusableFile(f"the tokenizer in {folder} cannot be read ({error}); download it again") from error
    tokenizer.padding_side = "right"
    return tokenizer


def encode_tokens(module, tokens: PromptTokens, device):
    """The kept hidden states of one prompt: [1, L, width] in the module's computation dtype."""
    ids = torch.tensor([tokens.ids], device=device)
    with torch.no_grad():
        states = module(input_ids=ids, use_cache=False)[0]
    return torch.cat([states[:, :1], states[:, tokens.first_kept :]], dim=1)


def memory_of_tokens(spec: TextEncoderSpec, tokens: Sequence[int]) -> int:
    """Bytes that encoding takes beyond the weights: states, their products and the attention maps, in float32."""
    return 4 * len(tokens) * (len(tokens) * 8 + spec.width * 16)
