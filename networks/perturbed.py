"""Perturbed-attention guidance (PAG, arXiv 2403.17377), with the results of diffusers' SanaPAGPipeline.

A third prediction has the identity in place of self-attention in some blocks: each token keeps its own value. The
result is led away from it: x0 + scale * (x0 of the prompt - x0 of the perturbed prediction).

In these blocks diffusers also leaves out the norms of queries and keys (SANA 1.5 has them), in every prediction of a
run. So does this, because the results are to be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch

from .fast_layers import linear_attention
from .fast_transformer import clipped


@dataclass(frozen=True)
class Perturbation:
    """``layers``: the blocks, from 0, whose self-attention is perturbed; ``identity``: in this prediction."""

    scale: float
    layers: tuple[int, ...]
    identity: bool = False

    def perturbed(self) -> Perturbation:
        """The same for the perturbed prediction."""
        return replace(self, identity=True)


def parse_layers(text: str, count: int | None = None) -> tuple[int, ...]:
    """Blocks from text such as "8" or "8, 9"; ValueError for anything else, or a block that a model of ``count`` lacks.

    Each number once, in rising order.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"layers is {text[:80]!r}; give the numbers of blocks, such as 8 or 8, 9")
    layers = tuple(sorted({int(part) for part in parts}))
    if count is not None and layers[-1] >= count:
        raise ValueError(f"layers is {text[:80]!r}; this model has the blocks 0 to {count - 1}")
    return layers


@dataclass(frozen=True)
class IdentityAttention:
    """Processor: the values alone (diffusers' PAGIdentitySanaLinearAttnProcessor2_0, its perturbed part).

    ``clips``: as in fast_transformer.LinearAttention, also below.
    """

    clips: bool

    def __call__(self, attn, hidden_states, *unused, **options):
        return clipped(attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states))), self.clips)


@dataclass(frozen=True)
class UnnormedAttention:
    """Processor: linear attention without norms of queries and keys (the same class's other part)."""

    clips: bool

    def __call__(self, attn, hidden_states, *unused, **options):
        return clipped(linear_attention(_WithoutNorms(attn), hidden_states, hidden_states), self.clips)


class _WithoutNorms:
    norm_q = norm_k = None

    def __init__(self, attention):
        self._attention = attention

    def __getattr__(self, name):
        return getattr(self._attention, name)


@cache
def _processor(kind: type, clips: bool):
    """The same object in every call, which a compiled model looks at."""
    return kind(clips)


@contextmanager
def attention_of(module: torch.nn.Module, perturbation: Perturbation | None) -> Iterator[None]:
    """Within it, a SanaTransformer2DModel has the self-attention of a perturbation; None: its own."""
    if perturbation is None:
        yield
        return
    blocks: list = [module.transformer_blocks[n].attn1 for n in perturbation.layers]
    before = [attention.processor for attention in blocks]
    try:
        for attention in blocks:
            clips = getattr(attention.processor, "clips", False)
            if perturbation.identity:
                attention.processor = _processor(IdentityAttention, clips)
            elif attention.norm_q is not None or attention.norm_k is not None:
                attention.processor = _processor(UnnormedAttention, clips)
        yield
    finally:
        for attention, processor in zip(blocks, before):
            attention.processor = processor
