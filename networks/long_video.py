"""SANA-Video's transformer over one block of a long video (LongSANA), to whose past it attends in constant memory.

Linear attention needs of all earlier tokens only two sums in each layer, and the convolution along time only the last
frame. For each layer a BlockState keeps:

- ``sums`` [layers, B, heads, channels of a head, the same] and ``total`` [layers, B, width], float32: rotated keys with
  values, and keys as they are. With n cached blocks, ``sums_by_block`` and ``total_by_block`` have n more of each
  in front, of one block each, and the sums are of those.
- ``left`` [layers, B, width, cells of a frame]: the last frame before the block, as the convolution takes it.

A call reads them, and changes them in place only if it writes. Nothing of them is in the module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..samplers.block_causal import BlockCall, BlockState
from .families import TransformerSpec
from .fast_layers import wide_dtype

LINEAR_SUMS = ("sums", "total")


@dataclass(frozen=True)
class LayerPast:
    """The part of a BlockState that one layer reads, and where the call writes also changes.

    ``sums`` [B, heads, d, d], ``total`` [B, width], ``left`` [B, width, cells]. ``by_block``: where only some blocks
    count, the sums and totals of each; ``slot`` [1]: which of them the block that is written replaces.
    """

    sums: torch.Tensor
    total: torch.Tensor
    left: torch.Tensor
    writes: bool
    by_block: tuple[torch.Tensor, ...] = ()
    slot: torch.Tensor | None = None

    def with_past(self, own: list) -> list:
        """The sums of each sample's own tokens with those of the tokens before; where the call writes they are kept."""
        together = [(s + sums, t + total) for (sums, total), s, t in zip(own, self.sums, self.total)]
        if not self.writes:
            return together
        if self.by_block:
            self._write_cached(own)
        else:
            for (sums, total), s, t in zip(together, self.sums, self.total):
                s.copy_(sums), t.copy_(total)
        return together

    def _write_cached(self, own: list) -> None:
        for kept, whole, new in zip(self.by_block, (self.sums, self.total), zip(*own)):
            # by a tensor: torch.compile takes another number, or a view of a part, for another graph
            kept.index_copy_(0, self.slot, torch.stack(new)[None])
            whole.copy_(kept.sum(0))

    def convolved(self, conv_temp, along_time: torch.Tensor) -> torch.Tensor:
        """The convolution along time of [B, width, frames, cells], with the frame before it and none after it."""
        out = conv_temp(torch.cat([self.left[:, :, None], along_time], dim=2))[:, :, 1:]
        if self.writes:
            self.left.copy_(along_time[:, :, -1])
        return out


def layers_of(state: BlockState, writes: bool) -> Iterator[LayerPast]:
    """The part of each layer, in order."""
    kept, by_block, slot = state.kept, [], None
    if state.cached_blocks and writes:
        by_block = [kept[f"{name}_by_block"] for name in LINEAR_SUMS]
        slot = torch.tensor([state.blocks % state.cached_blocks], device=by_block[0].device)
    for layer in range(len(kept["sums"])):
        cached = tuple(blocks[:, layer] for blocks in by_block)
        yield LayerPast(kept["sums"][layer], kept["total"][layer], kept["left"][layer], writes, cached, slot)


def state_shapes(config, batch: int, cells: int, cached_blocks: int = 0) -> dict[str, tuple[int, ...]]:
    """The shapes of a state's tensors, for frames of ``cells`` tokens and the config of diffusers' transformer."""
    layers, heads, head = config.num_layers, config.num_attention_heads, config.attention_head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "sums": (layers, batch, heads, head, head),
        "total": (layers, batch, heads * head),
        "left": (layers, batch, heads * head, cells),
    }
    if cached_blocks:
        shapes |= {f"{name}_by_block": (cached_blocks, *shapes[name]) for name in LINEAR_SUMS}
    return shapes


def cells_of(config, shape: Sequence[int]) -> int:
    """Tokens of a frame of latents [..., h, w]."""
    return math.prod(shape[-2:]) // math.prod(config.patch_size[1:])


def state_bytes(config, batch: int, cells: int, itemsize: int, cached_blocks: int = 0) -> int:
    """Bytes of a state; ``itemsize``: of a value in the dtype that the transformer computes in."""
    shapes = state_shapes(config, batch, cells, cached_blocks)
    return sum(torch.Size(shape).numel() * (itemsize if name == "left" else 4) for name, shape in shapes.items())


def prepare_state(state: BlockState, config, tokens: torch.Tensor, cells: int) -> None:
    """Make a state's tensors if it has none, on the device of ``tokens`` [B, n, width]; ValueError for another's."""
    shapes = state_shapes(config, tokens.shape[0], cells, state.cached_blocks)
    if not state.kept:
        dtypes = {name: tokens.dtype if name == "left" else wide_dtype(tokens) for name in shapes}
        state.kept = {n: torch.zeros(shape, dtype=dtypes[n], device=tokens.device) for n, shape in shapes.items()}
        return
    for name, shape in shapes.items():
        if name not in state.kept or state.kept[name].shape != shape:
            found = list(state.kept[name].shape) if name in state.kept else "none"
            raise ValueError(
                f"the state is of another model or size: {name} is {found} and this MODEL needs {list(shape)}: "
                "continue with the model, the width and the height that made it"
            )
    state.kept = {name: tensor.to(tokens.device) for name, tensor in state.kept.items()}
    state.kept["left"] = state.kept["left"].to(tokens.dtype)


def check_run(spec: TransformerSpec, blocks: bool, cfg: float = 1.0, others: Sequence[str] = ()) -> None:
    """ValueError for a sampler or a node that does not go with a model.

    ``blocks``: whether the sampler goes block by block. ``others``: what else is asked of the run, such as a
    ControlNet, for a message.
    """
    if blocks and not spec.family.block_causal:
        raise ValueError(
            f"this MODEL is {spec.name}, not LongSANA, which goes block by block: sample it with {spec.family.node}. "
            "If its file is LongSANA's, set variant to long in Sana Load Transformer"
        )
    if not spec.family.block_causal:
        return
    if not blocks:
        raise ValueError(
            f"{spec.name} is sampled block by block: use {spec.family.node}, Sana Long Video Save, or Sana Long Video "
            "Sampler with SamplerCustomAdvanced"
        )
    if cfg != 1.0:
        raise ValueError(f"cfg is {cfg:g}, but {spec.name} has no guidance: set cfg to 1, or use BasicGuider")
    if others:
        raise ValueError(f"{spec.name} does not go with {' and '.join(others)}: remove it for a long video")


def run_blocks(transformer, latents, caption, time, call: BlockCall, caption_mask=None) -> torch.Tensor:
    """FastVideoModel's forward for a BlockCall: its output [B, C, F, h, w] for ``latents``.

    ``caption`` [B, L, caption_channels], ``time`` [B], ``caption_mask`` [B, L] as in network_inputs.
    """
    patch = transformer.config.patch_size
    size = tuple(side // p for side, p in zip(latents.shape[2:], patch))
    tokens = transformer.patch_embedding(latents).flatten(2).transpose(1, 2)
    prepare_state(call.state, transformer.config, tokens, size[1] * size[2])
    vectors, last = transformer.times(time, None, tokens)
    captions, mask = transformer.prompt(caption, caption_mask, len(tokens), None)
    rotary = transformer.rope.rotary_at(call.state.start, size, latents)
    layers = layers_of(call.state, call.writes)
    for block, vector, words, past in zip(transformer.transformer_blocks, vectors, captions, layers):
        tokens = block(tokens, None, words, mask, vector, *size, rotary.with_past(past))
    if call.writes:
        call.state.start += size[0] * patch[0]
        call.state.blocks += 1
    return transformer.output(tokens, last, size)
