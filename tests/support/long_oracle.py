"""A long video in one pass, written apart from the product: what streaming block by block must give.

diffusers' SanaVideoTransformer3DModel with every weight between two tokens written out under a block mask, and a
convolution along time as a loop that looks only at frames of a frame's own or earlier blocks. Nothing is summed up or
kept. Norms and rotations are written out too, since diffusers computes them in float32 whatever the model's dtype is.
"""

from __future__ import annotations

import copy
import itertools
import types

import torch
from torch.nn import functional


class DenseAttention:
    """Linear attention with all weights [B, heads, tokens, tokens], those of later blocks 0."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key, value = (
            part.unflatten(2, (attn.heads, -1))
            for part in (
                normed(attn.norm_q, attn.to_q(hidden_states)),
                normed(attn.norm_k, attn.to_k(hidden_states)),
                attn.to_v(hidden_states),
            )
        )
        query, key = functional.relu(query), functional.relu(key)
        top = torch.einsum("bnhd,bmhd->bhnm", turned(query, *rotary_emb), turned(key, *rotary_emb)) * self.mask
        bottom = torch.einsum("bnhd,bmhd->bhnm", query, key) * self.mask
        out = torch.einsum("bhnm,bmhd->bnhd", top / (bottom.sum(-1, keepdim=True) + 1e-15), value)
        return attn.to_out[0](out.flatten(2))


class PromptOfBlock:
    """Attention to the words of a token's own block; ``mask`` [tokens, words]."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        query = normed(attn.norm_q, attn.to_q(hidden_states))
        key = normed(attn.norm_k, attn.to_k(encoder_hidden_states))
        query, key, value = (
            part.unflatten(2, (attn.heads, -1)) for part in (query, key, attn.to_v(encoder_hidden_states))
        )
        scores = torch.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.mask, float("-inf")).softmax(-1)
        return attn.to_out[0](torch.einsum("bhnm,bmhd->bnhd", weights, value).flatten(2))


def normed(norm, x):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


class Rotations(torch.nn.Module):
    """The angles of diffusers' WanRotaryPosEmbed: a frame, row or column times a speed for each pair of channels."""

    def __init__(self, head: int, patch):
        super().__init__()
        self.widths, self.patch = (head - 4 * (head // 6), 2 * (head // 6), 2 * (head // 6)), patch

    def forward(self, latents):
        sizes = [side // patch for side, patch in zip(latents.shape[2:], self.patch)]
        angles = [
            [
                place[axis] / 10000 ** (2 * pair / width)
                for axis, width in enumerate(self.widths)
                for pair in range(width // 2)
            ]
            for place in itertools.product(*map(range, sizes))
        ]
        angles = torch.tensor(angles, dtype=torch.float64)[None, :, None].to(latents.dtype)
        return angles.cos(), angles.sin()


def turned(x, cos, sin):
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


def looped_feed_forward(self, hidden_states):
    """GLUMBTempConv, whose convolution along time sees no frame of a later block."""
    batch, frames, height, width, channels = hidden_states.shape
    maps = hidden_states.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    values, gate = self.conv_depth(functional.silu(self.conv_inverted(maps))).chunk(2, 1)
    maps = self.conv_point(values * functional.silu(gate)).unflatten(0, (batch, frames))
    weight = self.conv_temp.weight[..., 0]
    out = maps.clone()
    for frame in range(frames):
        for step in (-1, 0, 1):
            other = frame + step
            if 0 <= other < frames and self.block_of[other] <= self.block_of[frame]:
                out[:, frame] += torch.einsum("oi,bihw->bohw", weight[..., step + 1], maps[:, other])
    return out.permute(0, 1, 3, 4, 2)


class Oracle:
    """``network``: diffusers' module, of which a copy is made, plain and not ours."""

    def __init__(self, network, lengths: list[int], dtype: torch.dtype = torch.float64):
        self.network = copy.deepcopy(network).to(dtype)
        self.block_of = [number for number, length in enumerate(lengths) for _ in range(length)]
        self.network.rope = Rotations(network.config.attention_head_dim, network.config.patch_size)

    @torch.no_grad()
    def __call__(self, latents, contexts: list[torch.Tensor], times: list[float]):
        """The output [B, C, T, h, w]: of block ``n`` with ``contexts[n]`` [1, L, width] at ``times[n]``."""
        _, _, frames, height, width = latents.shape
        p_t, p_h, p_w = self.network.config.patch_size
        cells = (height // p_h) * (width // p_w)
        of_token = torch.tensor(self.block_of[:frames]).repeat_interleave(cells)
        of_word = torch.cat([torch.full((c.shape[1],), number) for number, c in enumerate(contexts)])
        mask = (of_token[:, None] >= of_token[None, :]).to(latents.dtype)
        for block in self.network.transformer_blocks:
            block.attn1.processor = DenseAttention(mask)
            block.attn2.processor = PromptOfBlock(of_token[:, None] == of_word[None, :])
            block.ff.block_of = self.block_of
            block.ff.forward = types.MethodType(looped_feed_forward, block.ff)
        time = torch.tensor([times[number] for number in self.block_of[:frames]], dtype=latents.dtype)
        time = time.view(1, 1, -1, 1, 1).expand(latents.shape[0], 1, -1, height // p_h, width // p_w)
        words = torch.cat(contexts, dim=1).expand(len(latents), -1, -1)
        return self.network(latents, words, time, return_dict=False)[0]
