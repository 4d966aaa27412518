"""SANA's transformers as a whole in fewer passes, to the same answer: what surrounds the blocks.

SanaTransformer2DModel and SanaVideoTransformer3DModel are diffusers' own with another forward, which calls the same
layers. It differs in this:

- What blocks read of the prompt, and the embedding of the guidance, are computed once in a run, where the caller gives
  a dict to keep them in.
- The modulation of all blocks is one operator where all tokens of all samples have one time, and it is computed for
  each group of tokens that have one (image to video: each frame) and not for each token.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from .card_layers import few_launches, shared_memory
from .fast_layers import SCALES, CrossAttention, is_fast, keys_and_values, modulated
from .fast_times import embedded_times
from .fast_video_transformer import reads_past
from .long_video import run_blocks


class FastModel:
    """Either model; with gradients, or where something is asked for that this does not know, diffusers' forward."""

    embedded: Any
    unpatched: Any
    caption_projection: Any
    caption_norm: Any
    time_embed: Any
    transformer_blocks: Any
    scale_shift_table: Any
    norm_out: Any
    proj_out: Any

    def forward(
        self,
        hidden_states,
        encoder_hidden_states,
        timestep,
        guidance=None,
        encoder_attention_mask=None,
        controlnet_block_samples=None,
        return_dict=True,
        kept: dict | None = None,
        **more,
    ):
        """As diffusers'; ``timestep`` [B], [1], or of a video [B, 1, frames, 1, 1] or each token's.

        ``kept``: a dict, at first empty, of calls with the same prompts, guidance and weights.
        """
        if torch.is_grad_enabled() or return_dict or any(value is not None for value in more.values()):
            more = {**more, "controlnet_block_samples": controlnet_block_samples, "return_dict": return_dict}
            given = {"guidance": guidance, "encoder_attention_mask": encoder_attention_mask, **more}
            return super().forward(hidden_states, encoder_hidden_states, timestep, **given)  # type: ignore[misc]
        tokens, sizes, positions = self.embedded(hidden_states)
        vectors, last = self.times(timestep, guidance, tokens, kept)
        captions, mask = self.prompt(encoder_hidden_states, encoder_attention_mask, len(tokens), kept)
        with shared_memory(tokens.shape[:2].numel()) if few_launches(tokens) else nullcontext():
            for number, (block, vector, caption) in enumerate(zip(self.transformer_blocks, vectors, captions)):
                tokens = block(tokens, None, caption, mask, vector, *sizes, *positions)
                if controlnet_block_samples is not None and 0 < number <= len(controlnet_block_samples):
                    tokens = tokens + controlnet_block_samples[number - 1]
        return (self.output(tokens, last, sizes),)

    def output(self, tokens: torch.Tensor, last: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        """The output [B, C, ...] of tokens after all blocks; ``last``: the last norm's time [B, groups, width]."""
        shift, scale = (
            (self.scale_shift_table.to(last)[:, None, None, None] + last[:, :, None]).to(tokens.dtype).unbind()
        )
        apart = modulated(self.norm_out.norm, tokens.unflatten(1, (last.shape[1], -1)), scale.add_(1), shift)
        return self.unpatched(self.proj_out(apart.flatten(1, 2)), sizes)

    def prompt(self, states, mask, batch: int, kept: dict | None) -> tuple[list, torch.Tensor | None]:
        """For each block what its cross-attention reads of the prompt, and the mask's bias [B, 1, L]."""
        if kept and "prompt" in kept:
            return kept["prompt"]
        caption = self.caption_projection(states)
        # the norm gives its weight's dtype
        caption = self.caption_norm(caption.view(batch, -1, caption.shape[-1])).to(states.dtype)
        if mask is not None and mask.ndim == 2:
            mask = ((1 - mask.to(caption.dtype)) * -10000.0).unsqueeze(1)
        if kept is None:
            return [caption] * len(self.transformer_blocks), mask
        kept["prompt"] = [_read(block.attn2, caption) for block in self.transformer_blocks], mask
        return kept["prompt"]

    def times(
        self, timestep, guidance, tokens: torch.Tensor, kept: dict | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The blocks' modulations, and the last norm's time [B, groups, width]."""
        given = timestep.flatten(), guidance, len(tokens), tokens.dtype
        vectors, last = embedded_times(self.time_embed, *given, kept)
        samples = 1 if len(vectors) == 1 else max(len(timestep), 1 if guidance is None else len(guidance))
        vectors, last = (value.view(samples, -1, value.shape[-1]) for value in (vectors, last))
        return _modulations(self.transformer_blocks, vectors, tokens), last


def _read(attn, caption: torch.Tensor):
    """A prompt's keys and values; its states for a processor that is not ours."""
    return keys_and_values(attn, caption) if isinstance(getattr(attn, "processor", None), CrossAttention) else caption


TOKENS_OF_GROUP = 16
"""Tokens with one time from which on the vectors of all blocks are computed at once: they are little beside them."""


def _modulations(blocks, vectors: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """For each block its vectors, ready, or ``vectors`` as diffusers' blocks take them."""
    groups, count = vectors.shape[1], tokens.shape[1]
    fast = all(is_fast(block, tokens, vectors) for block in blocks)
    if not fast or groups > 1 and groups * TOKENS_OF_GROUP > count:
        if not fast:
            vectors = vectors.expand(len(tokens), -1, -1)
            vectors = vectors if groups == 1 else vectors.repeat_interleave(count // groups, dim=1)
        return [vectors if hasattr(blocks[0], "takes_groups") else vectors[:, 0]] * len(blocks)
    vectors = vectors.unflatten(2, (6, -1))
    vectors[:, :, SCALES].add_(1)
    tables = [block.scale_shift_table.to(tokens.dtype) for block in blocks]
    if vectors.shape[:2].numel() == 1:
        return [v[None, None] for v in torch._foreach_add(tables, [vectors[0, 0]] * len(tables))]
    return [table + vectors for table in tables]


class FastImageModel(FastModel):
    """SanaTransformer2DModel."""

    config: Any
    patch_embed: Any

    def embedded(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...], tuple]:
        """Tokens, their rows and columns, and nothing: positions are in the tokens."""
        size = self.config.patch_size
        return self.patch_embed(x), (x.shape[2] // size, x.shape[3] // size), ()

    def unpatched(self, tokens: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        size = self.config.patch_size
        patches = tokens.unflatten(2, (size, size, -1)).unflatten(1, sizes).permute(0, 5, 1, 3, 2, 4)
        return patches.flatten(4, 5).flatten(2, 3)


class FastVideoModel(FastModel):
    """SanaVideoTransformer3DModel, which runs a block of a long video where a BlockCall is given (long_video.py)."""

    def forward(self, hidden_states, encoder_hidden_states, timestep, *given, block=None, **named):
        """As FastModel's; ``block``: a BlockCall."""
        if block is None:
            return super().forward(hidden_states, encoder_hidden_states, timestep, *given, **named)
        if not all(reads_past(part) for part in self.transformer_blocks):
            raise ValueError("this SANA-Video has layers that no published one has: it cannot run block by block")
        caption, mask = block.prompt(encoder_hidden_states), named.get("encoder_attention_mask")
        with torch.no_grad():
            return (run_blocks(self, hidden_states, caption, timestep, block, mask),)

    config: Any
    patch_embedding: Any
    rope: Any

    def embedded(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...], tuple]:
        """Tokens, their frames, rows and columns, and the rotations by their positions."""
        sizes = tuple(side // patch for side, patch in zip(x.shape[2:], self.config.patch_size))
        return self.patch_embedding(x).flatten(2).transpose(1, 2), sizes, (self.rope(x),)

    def unpatched(self, tokens: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        patches = tokens.unflatten(2, (*self.config.patch_size, -1)).unflatten(1, sizes)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


FAST_MODELS = {"SanaTransformer2DModel": FastImageModel, "SanaVideoTransformer3DModel": FastVideoModel}
"""By the name of diffusers' class."""
