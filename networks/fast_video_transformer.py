"""SANA-Video's transformer in fewer passes over memory, to the same answer.

Blocks, their attention and the positions are diffusers' own (SanaVideoTransformerBlock, SanaLinearAttnProcessor3_0,
SanaAttnProcessor2_0, GLUMBTempConv, WanRotaryPosEmbed) with another forward, which calls the same layers. Beside what
fast_layers.py says, it differs in this:

- The rotations of a size are computed once and kept, as complex numbers of half a head's channels.
- The divisor of linear attention is float32 too. diffusers has it in the model's dtype.
- The feed-forward goes over the frames a few at a time until its convolution along time, so that its wide maps take
  the memory of a few frames.
- Of a modulation for each token (image to video) one vector at a time is computed.
- With a BlockCall it runs one block of a long video, which attends to the blocks before it (long_video.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from .card_layers import left_to_compiler
from .fast_layers import (
    CrossAttention,
    gated,
    is_fast,
    linear_attention,
    run_block,
    tokens_of_step,
    use_class,
    use_fast_attention,
    use_fast_feed_forward,
)
from .long_video import LayerPast

SIZES = 2
"""Sizes of videos whose rotations are kept: 15 MB for 81 frames of 832x480."""

THETA = 10000.0
"""The base of the rotations' speeds, as in diffusers."""


class Rotary:
    """The rotations of a video's tokens: ``turns`` [tokens, channels of a head / 2], complex.

    It unpacks into what diffusers has in its stead: cosines and sines [1, tokens, 1, channels of a head]. ``past``:
    of the blocks before, in a block of a long video; it takes this way to the layers that read it.
    """

    def __init__(self, turns: torch.Tensor, past: LayerPast | None = None):
        self.turns, self.past = turns, past

    def with_past(self, past: LayerPast) -> Rotary:
        return Rotary(self.turns, past)

    def cosines_and_sines(self) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = (part.repeat_interleave(2, dim=-1)[None, :, None] for part in (self.turns.real, self.turns.imag))
        return cos, sin

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.cosines_and_sines())


class FastPositions:
    """WanRotaryPosEmbed that returns a Rotary, kept for the last sizes; moved or cast, it forgets them."""

    def forward(self, hidden_states):
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._rotary(hidden_states)
        return self._kept((*hidden_states.shape[2:], hidden_states.device), lambda: self._rotary(hidden_states))

    def _kept(self, size: tuple, make: Callable[[], Rotary]) -> Rotary:
        kept = self.__dict__.setdefault("kept", {})
        if size not in kept:
            kept[size] = make()
        for oldest in list(kept)[:-SIZES]:
            del kept[oldest]
        return kept[size]

    def rotary_at(self, start: int, size: Sequence[int], like: torch.Tensor) -> Rotary:
        """The Rotary of ``size`` (frames, rows, columns) tokens from frame ``start`` on, however large that is."""
        if torch.compiler.is_compiling():  # what is kept would be another graph for each block
            return Rotary(self._turns(start, size, like))
        key = (start, *size, like.dtype, like.device)
        return self._kept(key, lambda: Rotary(self._turns(start, size, like)))

    def _turns(self, start, size, like):
        axes = []
        for axis, (first, count, width) in enumerate(zip((start, 0, 0), size, (self.t_dim, self.h_dim, self.w_dim))):
            speeds = THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
            angles = torch.arange(first, first + count, dtype=torch.float64)[:, None] * speeds
            shape = [1, 1, 1, -1]
            shape[axis] = count
            axes.append(torch.polar(torch.ones_like(angles), angles).view(shape).expand(*size, -1))
        turns = torch.cat(axes, dim=-1).flatten(0, 2)
        return turns.to(like.device, torch.complex128 if like.dtype == torch.float64 else torch.complex64)

    def _rotary(self, hidden_states) -> Rotary:
        cos, sin = super().forward(hidden_states)  # type: ignore[misc]
        turns = torch.complex(cos[0, :, 0, 0::2].float(), sin[0, :, 0, 1::2].float())
        return Rotary(turns.to(hidden_states.device))

    def _apply(self, *arguments, **options):
        self.__dict__.pop("kept", None)
        return super()._apply(*arguments, **options)


def forget_positions(module: torch.nn.Module) -> None:
    """Free the rotations that a SanaVideoTransformer3DModel keeps."""
    for part in module.modules():
        if isinstance(part, FastPositions):
            part.__dict__.pop("kept", None)


class RotaryLinearAttention:
    """Processor: linear attention with a Rotary; ``replaced``: diffusers' own, for all else and with gradients."""

    def __init__(self, replaced):
        self.replaced = replaced

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb: Rotary | None = None
    ):
        if torch.is_grad_enabled() or not isinstance(rotary_emb, Rotary) or left_to_compiler(hidden_states):
            # torch.compile of torch 2.9 cannot unpack a Rotary
            pair = rotary_emb.cosines_and_sines() if isinstance(rotary_emb, Rotary) else rotary_emb
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask, pair)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        past = rotary_emb.past
        before = None if past is None else past.with_past
        return linear_attention(attn, hidden_states, source, rotary_emb.turns, before)


class FastVideoBlock:
    """SanaVideoTransformerBlock; with gradients, or dtypes that differ, diffusers' own forward."""

    ff: torch.nn.Module
    takes_groups = True

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        timestep=None,
        frames=None,
        height=None,
        width=None,
        rotary_emb=None,
    ):
        caption = encoder_hidden_states, encoder_attention_mask
        past = getattr(rotary_emb, "past", None)
        if past is None and not is_fast(self, hidden_states, timestep):
            return super().forward(hidden_states, attention_mask, *caption, timestep, frames, height, width, rotary_emb)

        def feed_forward(tokens: torch.Tensor) -> torch.Tensor:
            maps = tokens.unflatten(1, (frames, height, width))
            return (self.ff(maps) if past is None else self.ff(maps, past)).flatten(1, 3)

        ready = timestep.ndim == 4  # by FastModel, for all blocks at once
        vectors = timestep if ready else timestep.unflatten(2, (6, -1))
        return run_block(self, hidden_states, vectors, *caption, feed_forward, ready, rotary_emb=rotary_emb)


class FastVideoFeedForward:
    """GLUMBTempConv without a norm or a residual; with gradients diffusers' own forward."""

    def forward(self, hidden_states, past=None):
        """[B, frames, H, W, channels] to the same; ``past``: of the blocks before, in a long video."""
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        batch, frames, height, width, _ = hidden_states.shape
        maps = hidden_states.flatten(0, 1).permute(0, 3, 1, 2)
        parts = maps.split(frames_of_step(maps))
        spatial = gated(self, maps) if len(parts) == 1 else torch.empty_like(maps)
        if len(parts) > 1:
            for some, out in zip(parts, spatial.split(frames_of_step(maps))):
                gated(self, some, out)
        along_time = spatial.permute(0, 2, 3, 1).reshape(batch, frames, height * width, -1).permute(0, 3, 1, 2)
        out = self.conv_temp(along_time) if past is None else past.convolved(self.conv_temp, along_time)
        out = out.add_(along_time)
        return out.permute(0, 2, 3, 1).unflatten(2, (height, width))


def reads_past(block) -> bool:
    """Whether the layers of a block that look along time read a LayerPast."""
    attends = isinstance(getattr(block.attn1, "processor", None), RotaryLinearAttention)
    return attends and isinstance(block.ff, FastVideoFeedForward)


def frames_of_step(maps: torch.Tensor) -> int:
    """How many of the maps [frames, channels, H, W] the feed-forward takes at a time."""
    return max(1, tokens_of_step(maps.device) // maps[0, 0].numel())


def use_fast_video_layers(module: torch.nn.Module) -> torch.nn.Module:
    """Give the blocks of a SanaVideoTransformer3DModel the forward of this file, in place.

    What is not as SANA's published models have it keeps diffusers' forward.
    """
    for part in module.modules():
        if type(part).__name__ == "SanaVideoTransformerBlock":
            use_class(part, FastVideoBlock)
            use_fast_attention(part.attn1, "SanaLinearAttnProcessor3_0", RotaryLinearAttention)
            use_fast_attention(part.attn2, "SanaAttnProcessor2_0", CrossAttention)
            use_fast_feed_forward(part.ff, FastVideoFeedForward)
        elif type(part).__name__ == "WanRotaryPosEmbed":
            use_class(part, FastPositions)
    return module
