"""torch.compile of Gemma-2, layer by layer: one graph for all layers, and for prompts of any length.

A layer writes its keys and values into a cache, under its own number: a graph of that would be another one for each
layer. Here it gets those before its tokens as tensors and gives them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Past:
    """The keys and values [B, heads, tokens, channels] before a layer's tokens, or None; in a layer a Cache."""

    def __init__(self, keys: torch.Tensor | None, values: torch.Tensor | None):
        self.keys, self.values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)
        self.keys, self.values = keys, values
        return keys, values


def _run(layer, states, named: dict, cache: str, keys, values):
    past = Past(keys, values)
    out = layer._call_impl(states, **{**named, cache: past})
    return out, past.keys, past.values


def compiled_layer(layer: Any, backend: Any) -> Callable:
    """What stands for a Gemma2DecoderLayer's call: compiled, unless it is called in another way than Gemma2Model's."""
    run = torch.compile(_run, backend=backend)
    number = layer.self_attn.layer_idx

    def call(states, *more, **named):
        cache = next((name for name, value in named.items() if hasattr(value, "layers")), None)
        if more or cache is None:
            return layer._call_impl(states, *more, **named)
        kept = named.pop(cache)
        before = _before(kept, number)
        any_length(states, 1)
        any_length(named.get("attention_mask"), 2, 3)
        for table in named.get("position_embeddings") or ():
            any_length(table, 1)
        for tensor in before:
            any_length(tensor, 2)
        out, keys, values = run(layer, states, named, cache, *before)
        _keep(kept, number, keys, values)
        return out

    return call


def _before(cache, number: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Contiguous, for strides of a part of a longer cache are another graph."""
    layer = cache.layers[number] if number < len(cache.layers) else None
    if layer is None or layer.keys is None or not layer.keys.numel():
        return None, None
    return layer.keys.contiguous(), layer.values.contiguous()


def _keep(cache, number: int, keys: torch.Tensor, values: torch.Tensor) -> None:
    layer = cache.layers[number] if number < len(cache.layers) else None
    if layer is None or layer.keys is None or not layer.keys.numel():
        cache.update(keys, values, number)
    else:
        layer.keys, layer.values = keys, values


def any_length(tensor: torch.Tensor | None, *dims: int) -> None:
    """Tell torch.compile that a tensor's size along ``dims`` changes from call to call."""
    if tensor is not None and not hasattr(tensor, "_dynamo_weak_dynamic_indices"):
        torch._dynamo.maybe_mark_dynamic(tensor, dims)
