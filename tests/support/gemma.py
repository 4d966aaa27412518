"""A small Gemma-2 in the file of ComfyUI's Lumina 2: weights and a SentencePiece model trained at run time."""

from __future__ import annotations

import io
from pathlib import Path

import tiny
import torch
from sana_nodes.networks import prompts

FILE = "tiny_gemma.safetensors"
TRICKY = [
    "",
    "a red ring on the left of a blue background",
    "  runs   of    spaces  ",
    "one\ntwo\n\nthree\n\n\nfour\ttab\t\ttabs \n \n",
    "日本の山と海、夕焼け",
    "Ελληνικά, кириллица, العربية, हिन्दी 🦊🏔️",
    "12345 6.7 100%",
    "<b>bold</b> <h1>",
    "\x07 \x00 \ue000 z͑ͫ̓ͪ̂ͫ",
]


def spiece(vocabulary: int = 760, **changes) -> bytes:
    """Gemma's kind of SentencePiece model: byte-pair pieces, bytes to fall back on, nothing normalised."""
    import sentencepiece

    corpus = [*prompts.INSTRUCTIONS["image"].split("\n"), *prompts.INSTRUCTIONS["video"].split("\n"), *TRICKY[:4]]
    written = io.BytesIO()
    symbols = ["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]
    settings = {
        "model_type": "bpe",
        "vocab_size": vocabulary,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": [*symbols, "<b>", "</b>", "\t\t"],
        "minloglevel": 2,
    }
    for place, name in enumerate(("pad", "eos", "bos", "unk")):
        settings |= {f"{name}_id": place, f"{name}_piece": f"<{name}>"}
    lines = iter(line for line in corpus * 3 if line.strip())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=written, **{**settings, **changes})
    return written.getvalue()


def encoder():
    """A Gemma-2 whose heads are 256 wide, as files without a config are read."""
    published = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
    return tiny.text_encoder(seed=9, num_attention_heads=2, num_key_value_heads=1, **published)


def write(path: Path, module, model: bytes | None, prefix: str = "model.", dtype=None, **more) -> None:
    """One safetensors file: the weights under ``prefix`` and the SentencePiece model among them."""
    from safetensors.torch import save_file

    tensors = {f"{prefix}{key}": value.to(dtype or value.dtype) for key, value in module.state_dict().items()}
    if model is not None:
        tensors["spiece_model"] = torch.frombuffer(bytearray(model), dtype=torch.uint8)
    save_file({**tensors, **more}, path)


class Pieces:
    """Google's own SentencePiece under the interface that diffusers' pipelines call: the tokens to be had."""

    padding_side = "right"

    def __init__(self, model: bytes):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def encode(self, text: str) -> list[int]:
        return [2, *self.processor.encode(text)]

    def __call__(self, text, max_length=None, padding=None, **_):
        from transformers import BatchEncoding

        rows = [self.encode(one)[:max_length] for one in ([text] if isinstance(text, str) else text)]
        padded = [row + [0] * (max_length - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (max_length - len(row)) for row in rows]
        return BatchEncoding({"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)})
