"""What Gemma-2 need not compute again: the instruction before every prompt, and prompts that were asked before.

Gemma is causal: the keys and values of an instruction's tokens are the same for every prompt behind it. They are
computed once and kept with the encoder, on its device; a prompt then computes its own tokens alone.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .prompts import PromptTokens
from .text_encoder import encode_tokens

PREFIXES, PROMPTS = 2, 16
"""How many instructions and how many prompts are kept, the last used ones."""

SHORTEST = 16
"""Tokens before the kept ones from which it is worth keeping them."""


@dataclass(frozen=True)
class Prefix:
    """Tokens with their keys and values, one layer after another, and the first token's state [1, 1, width]."""

    ids: tuple[int, ...]
    cache: object
    first: torch.Tensor

    def common(self, ids: Sequence[int]) -> int:
        """How many tokens from the first on are the same."""
        return next((n for n, (a, b) in enumerate(zip(self.ids, ids)) if a != b), min(len(self.ids), len(ids)))

    def cut(self, length: int):
        """A cache of the first tokens that may grow; the tensors are shared, since a cache grows by copies."""
        grown = copy.copy(self.cache)
        grown.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in grown.layers:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
        return grown

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.itemsize for layer in self.cache.layers for t in (layer.keys, layer.values))


def weights_probe(module) -> tuple[float, ...]:
    """A few values of each matrix: others once a LoRA or a hook has been put into the weights."""
    return tuple(
        torch.cat([p.detach().flatten()[:4].cpu().float() for p in module.parameters() if p.ndim > 1]).tolist()
    )


class PromptCache:
    """What is kept of one encoder. ``new_cache`` makes an empty cache of keys and values for its module."""

    def __init__(self, new_cache: Callable[[], Any]):
        self._new_cache = new_cache
        self._weights: Hashable = None
        self._prefixes: list[Prefix] = []
        self._states: OrderedDict[PromptTokens, torch.Tensor] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes that it holds on the encoder's device."""
        return sum(prefix.nbytes for prefix in self._prefixes)

    def clear(self) -> None:
        self._prefixes.clear()
        self._states.clear()

    @torch.no_grad()
    def encode(self, module, tokens: PromptTokens, device, weights: Hashable = None) -> torch.Tensor:
        """The kept hidden states of one prompt: [1, L, width] in the module's compute dtype.

        They are on the CPU where the prompt is a repeated one, else on ``device``. ``weights``: anything that
        differs where the module's weights do; another one empties the cache.
        """
        weights = (weights, str(device))
        if weights != self._weights:
            self.clear()
            self._weights = weights
        if tokens in self._states:
            self._states.move_to_end(tokens)
            return self._states[tokens].clone()
        states = self._computed(module, tokens, device)
        self._states[tokens] = states.to("cpu", copy=True)
        if len(self._states) > PROMPTS:
            self._states.popitem(last=False)
        return states

    def _computed(self, module, tokens: PromptTokens, device) -> torch.Tensor:
        length = min(tokens.first_kept, len(tokens.ids) - 1)
        if length < SHORTEST:
            return encode_tokens(module, tokens, device)
        prefix, length = self._prefix(module, tokens.ids[:length], device)
        rest = torch.tensor([tokens.ids[length:]], device=device)
        states = module(input_ids=rest, past_key_values=prefix.cut(length), use_cache=True)[0]
        return torch.cat([prefix.first, states[:, tokens.first_kept - length :]], dim=1)

    def _prefix(self, module, ids: tuple[int, ...], device) -> tuple[Prefix, int]:
        """A kept prefix and how much of it is ``ids``: where text joins an instruction, its last tokens may differ."""
        found = max(self._prefixes, key=lambda prefix: prefix.common(ids), default=None)
        if found is None or found.common(ids) < len(ids) // 2:
            found = self._made(module, ids, device)
        else:
            self._prefixes.remove(found)
        self._prefixes = [*self._prefixes, found][-PREFIXES:]
        return found, found.common(ids)

    def _made(self, module, ids: tuple[int, ...], device) -> Prefix:
        cache = self._new_cache()
        states = module(input_ids=torch.tensor([ids], device=device), past_key_values=cache, use_cache=True)[0]
        return Prefix(ids, cache, states[:, :1].clone())
