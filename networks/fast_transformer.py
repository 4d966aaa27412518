"""SANA's transformers in fewer passes over memory, to the same answer: the image transformer's part.

Blocks and their attention are diffusers' own (SanaTransformerBlock, SanaLinearAttnProcessor2_0, SanaAttnProcessor2_0,
GLUMBConv) with another forward, which calls the same layers: a LoRA, weights of eight bits, layers that cast,
offloading and a ControlNet act as before. fast_layers.py says what differs.
"""

from __future__ import annotations

import torch

from .card_layers import left_to_compiler
from .fast_layers import (
    CrossAttention,
    gated,
    is_fast,
    linear_attention,
    run_block,
    use_class,
    use_fast_attention,
    use_fast_feed_forward,
)
from .fast_model import FAST_MODELS
from .fast_video_transformer import FastVideoBlock, use_fast_video_layers

FLOAT16 = torch.finfo(torch.float16).max


class LinearAttention:
    """Processor: linear attention; ``replaced``: diffusers' own, which acts where gradients are asked for.

    Its result is clipped to float16's range in float16, as in diffusers, and with ``clips`` in every dtype: models that
    were trained in float16 rely on it.
    """

    def __init__(self, replaced):
        self.replaced, self.clips = replaced, False

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        if torch.is_grad_enabled():
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask)
        if left_to_compiler(hidden_states):
            out = self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask)
        else:
            source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            out = linear_attention(attn, hidden_states, source)
        return clipped(out, self.clips)


def clipped(out: torch.Tensor, clips: bool) -> torch.Tensor:
    """Clipped in place to float16's range in float16, and with ``clips`` in every dtype."""
    return out.clamp_(-FLOAT16, FLOAT16) if clips or out.dtype == torch.float16 else out


class FastBlock:
    """SanaTransformerBlock; with gradients, or dtypes that differ, diffusers' own forward."""

    ff: torch.nn.Module

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        timestep=None,
        height=None,
        width=None,
    ):
        if not is_fast(self, hidden_states, timestep):
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, height, width
            )

        def feed_forward(tokens: torch.Tensor) -> torch.Tensor:
            maps = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
            return self.ff(maps).permute(0, 2, 3, 1).flatten(1, 2)

        ready = timestep.ndim == 4  # by FastModel, for all blocks at once
        vectors = timestep if ready else timestep.unflatten(1, (1, 6, -1))
        caption = encoder_hidden_states, encoder_attention_mask
        return run_block(self, hidden_states, vectors, *caption, feed_forward, ready)


class FastFeedForward:
    """GLUMBConv without a norm or a residual; with gradients diffusers' own forward."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) if torch.is_grad_enabled() else gated(self, hidden_states)


def use_fast_transformer(module: torch.nn.Module, clips: bool = False) -> torch.nn.Module:
    """Give the blocks of one of diffusers' SANA transformers or of its ControlNet the forward of this pack, in place.

    What is not as SANA's published models have it keeps diffusers' forward. ``clips``: as in a TransformerSpec.
    """
    for part in module.modules():
        if type(part).__name__ == "SanaTransformerBlock":
            use_class(part, FastBlock)
            use_fast_attention(part.attn1, "SanaLinearAttnProcessor2_0", LinearAttention)
            if isinstance(part.attn1.processor, LinearAttention):
                part.attn1.processor.clips = clips
            use_fast_attention(part.attn2, "SanaAttnProcessor2_0", CrossAttention)
            use_fast_feed_forward(part.ff, FastFeedForward)
    use_fast_video_layers(module)
    fast = FAST_MODELS.get(type(module).__name__)
    if fast and all(isinstance(block, (FastBlock, FastVideoBlock)) for block in module.transformer_blocks):
        use_class(module, fast)
    return module
