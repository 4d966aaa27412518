"""A loaded Gemma-2: tokens to the hidden states that SANA uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from .card_layers import few_launches, normed
from .fast_layers import use_class
from .prompts import PromptTokens


@dataclass(frozen=True)
class TextEncoderSpec:
    """``width``: channels of a hidden state; ``vocabulary``: token ids are below it.

    ``new_cache`` makes an empty cache of keys and values, which keeps all of them in every layer: that some
    layers see a few tokens alone is in their masks.
    """

    width: int
    layers: int
    vocabulary: int
    new_cache: Callable[[], Any]


class TokenEmbedding(torch.nn.Embedding):
    """Gemma's token embedding; the lookup runs on the device and in the dtype of the table.

    Only the selected rows are moved to the device of the ids and cast to ``compute_dtype``: the table
    is 1.2 GB for Gemma-2-2B, and computing in float32 with bfloat16 weights has to start with the rows.
    """

    compute_dtype: torch.dtype | None = None

    def forward(self, ids):
        rows = functional.embedding(ids.to(self.weight.device), self.weight)
        return self.scaled(rows.to(device=ids.device, dtype=self.compute_dtype or rows.dtype))

    def scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """transformers 5 scales inside the embedding by a buffer; transformers 4 in the model's forward."""
        scale = getattr(self, "embed_scale", None)
        return rows if scale is None else rows * scale.to(rows)


class FastNorm:
    """Gemma2RMSNorm in half of the launches on a card: float32, and rounded once, as transformers has it."""

    weight: torch.Tensor
    eps: float

    def forward(self, x):
        if torch.is_grad_enabled() or not few_launches(x):
            return super().forward(x)  # type: ignore[misc]
        return normed(x.float(), 1.0 + self.weight.float(), self.eps).type_as(x)


def use_fast_text_encoder(module: torch.nn.Module) -> torch.nn.Module:
    """Give Gemma-2's norms the forward of this file, in place."""
    for part in module.modules():
        if type(part).__name__ == "Gemma2RMSNorm":
            use_class(part, FastNorm)
    return module


def encode_tokens(module, tokens: PromptTokens, device):
    """The selected hidden states of one prompt: [1, L, width] in the module's compute dtype."""
    ids = torch.tensor([tokens.ids], device=device)
    with torch.no_grad():
        states = module(input_ids=ids, use_cache=False)[0]
    return torch.cat([states[:, :1], states[:, tokens.first_kept :]], dim=1)


TOGETHER = 16
"""Prompts of one call at most."""


def memory_of_tokens(spec: TextEncoderSpec, lengths: Sequence[int]) -> int:
    """Bytes for encoding prompts of so many tokens each, without the weights.

    States, their products and the attention maps, in float32; of more than TOGETHER prompts the longest.
    """
    longest = sorted(lengths)[-TOGETHER:]
    return sum(4 * length * (length * 8 + spec.width * 16) for length in longest)
