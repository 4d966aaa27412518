"""Cross-attention by the function that a person chose in ComfyUI: by a flag, or by a node in the graph.

SANA's self-attention is linear and has no such choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.cli_args import args
from comfy.ldm.modules import attention
from torch.nn import functional

OVERRIDE = "optimized_attention_override"
"""The function of a node (ModelAttentionBackend, or one for SageAttention) in a call's transformer_options."""

EXACT = {"attention_flash", "attention_xformers"}
"""ComfyUI's functions that give the answer of torch's own; SageAttention's and comfy-kitchen's round to eight bits."""

FLAGS = {"attention_split": "use_split_cross_attention", "attention_sub_quad": "use_quad_cross_attention"}
"""Those that give it too, and that ComfyUI also takes where nobody asked for them: torch's own is faster then."""


@dataclass(frozen=True)
class ChosenAttention:
    """``function``: ComfyUI's, of [B, heads, tokens, channels of a head]; ``override``: a node's in its place."""

    function: Callable
    override: Callable | None = None

    def __call__(self, query, key, value, attn_mask=None):
        if self.override is None and self.function.__name__ == "attention_flash" and not _by_flash(query, attn_mask):
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        options = {} if self.override is None else {OVERRIDE: self.override}
        kept = {"skip_reshape": True, "skip_output_reshape": True, "transformer_options": options}
        return self.function(query, key, value, query.shape[1], mask=attn_mask, **kept)


def _by_flash(query: torch.Tensor, mask) -> bool:
    """Whether FlashAttention takes them: ComfyUI would try, and log a warning at each call."""
    return mask is None and query.dtype.itemsize == 2


def chosen(options: dict) -> ChosenAttention | None:
    """The attention of a call with these transformer_options, or None for torch's own.

    A node's choice is used as it is; a flag's only where it gives torch's answer.
    """
    function, override = attention.optimized_attention, options.get(OVERRIDE)
    name = getattr(function, "__name__", "")
    if override is not None or name in EXACT or getattr(args, FLAGS.get(name, ""), False):
        return ChosenAttention(function, override)
    return None
