"""What Gemma-2 need not compute again: the instruction before every prompt, and prompts that were asked before.

Gemma is causal: the keys and values of an instruction's tokens are the same for every prompt behind it. They are
computed once and kept with the encoder, on its device; a prompt then computes its own tokens alone. Where
computing them takes long, they are kept on disk too, for the first prompt after the next start.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import torch

from .prompts import PromptTokens
from .text_encoder import encode_tokens

FORMAT = "1"
"""Of what is kept on disk; another one is not read."""

LONG = 0.5
"""Seconds of computing an instruction from which its keys and values are kept on disk."""

PREFIXES, PROMPTS = 2, 16
"""How many instructions and how many prompts are kept, the last used ones."""

BLOCK = 64
"""Values of a weight at each of four places that its hash takes in."""

SHORTEST = 16
"""Tokens before the kept ones from which it is worth keeping them."""


@dataclass(frozen=True)
class Prefix:
    """Tokens with their keys and values, one layer after another, and the first token's state [1, 1, width]."""

    ids: tuple[int, ...]
    cache: Any
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

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is kept on disk."""
        layers = enumerate(self.cache.layers)
        kept = {f"{name}.{n}": getattr(layer, name) for n, layer in layers for name in ("keys", "values")}
        return {"first": self.first, **kept}

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.itemsize for layer in self.cache.layers for t in (layer.keys, layer.values))


class Disk(Protocol):
    """Where a host keeps tensors between runs; neither method raises."""

    def load(self, key: str) -> dict[str, torch.Tensor] | None: ...

    def save(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None: ...


def weights_hash(module) -> str:
    """A hash of every weight's name, shape, dtype and of values at four places in it: one read of a few pages each."""
    digest = sha256()
    for name, value in module.state_dict(keep_vars=True).items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        flat = value.detach().flatten()
        for part in range(4):
            start = max(0, len(flat) - BLOCK) * part // 3
            digest.update(flat[start : start + BLOCK].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_probe(module) -> tuple[float, ...]:
    """A few values of each matrix: others once a LoRA or a hook has been put into the weights.

    Of ComfyUI's quantised tensors what they store, which needs no dequantising.
    """
    stored = [getattr(p, "_qdata", p) for p in module.parameters() if p.ndim > 1]
    first = [p.detach().flatten()[:4].float() for p in stored]
    probes: dict[int, list[float]] = {}
    for device in {t.device for t in first}:  # one transfer for each
        numbers = [number for number, t in enumerate(first) if t.device == device]
        values = torch.cat([first[number] for number in numbers]).tolist()
        for number in numbers:
            probes[number], values = values[: len(first[number])], values[len(first[number]) :]
    return tuple(value for number in sorted(probes) for value in probes[number])


class PromptCache:
    """What is kept of one encoder.

    ``new_cache`` makes an empty cache of keys and values for its module; ``disk`` keeps an instruction's.
    """

    def __init__(self, new_cache: Callable[[], Any], disk: Disk | None = None):
        self._new_cache, self.disk = new_cache, disk
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
    def encode(
        self, module, tokens: PromptTokens, device, weights: Hashable = None, patched: bool = False
    ) -> torch.Tensor:
        """The kept hidden states of one prompt: [1, L, width] in the module's compute dtype.

        They are on the CPU where the prompt is a repeated one, else on ``device``. ``weights``: anything that
        differs where the module's weights do; another one empties the cache. ``patched``: whether they may be
        others than the module's tensors say; nothing is kept on disk then.
        """
        weights = (weights, str(device))
        if weights != self._weights:
            self.clear()
            self._weights = weights
        if tokens in self._states:
            self._states.move_to_end(tokens)
            return self._states[tokens].clone()
        states = self._computed(module, tokens, device, None if patched else self.disk)
        self._states[tokens] = states.to("cpu", copy=True)
        if len(self._states) > PROMPTS:
            self._states.popitem(last=False)
        return states

    def _computed(self, module, tokens: PromptTokens, device, disk: Disk | None) -> torch.Tensor:
        length = min(tokens.first_kept, len(tokens.ids) - 1)
        if length < SHORTEST:
            return encode_tokens(module, tokens, device)
        prefix, length = self._prefix(module, tokens.ids[:length], device, disk)
        rest = torch.tensor([tokens.ids[length:]], device=device)
        states = module(input_ids=rest, past_key_values=prefix.cut(length), use_cache=True)[0]
        return torch.cat([prefix.first, states[:, tokens.first_kept - length :]], dim=1)

    def _prefix(self, module, ids: tuple[int, ...], device, disk: Disk | None) -> tuple[Prefix, int]:
        """A kept prefix and how much of it is ``ids``: where text joins an instruction, its last tokens may differ."""
        found = max(self._prefixes, key=lambda prefix: prefix.common(ids), default=None)
        if found is None or found.common(ids) < len(ids) // 2:
            found = self._from_disk(module, ids, device, disk)
        else:
            self._prefixes.remove(found)
        self._prefixes = [*self._prefixes, found][-PREFIXES:]
        return found, found.common(ids)

    def _from_disk(self, module, ids: tuple[int, ...], device, disk: Disk | None) -> Prefix:
        if disk is None:
            return self._made(module, ids, device)
        key = _key(module, ids, device)
        if (found := self._restored(module, disk.load(key), ids, device)) is not None:
            return found
        start = time.monotonic()
        made = self._made(module, ids, device)
        if time.monotonic() - start > LONG:
            disk.save(key, made.tensors())
        return made

    def _restored(self, module, kept: dict[str, torch.Tensor] | None, ids: tuple[int, ...], device) -> Prefix | None:
        """None where anything is not as it was kept."""
        names = [(f"keys.{n}", f"values.{n}") for n in range(module.config.num_hidden_layers)]
        if kept is None or kept.keys() != {"first", *(name for pair in names for name in pair)}:
            return None
        cache = self._new_cache()
        for number, pair in enumerate(names):
            keys, values = (kept[name].to(device) for name in pair)
            if keys.ndim != 4 or keys.shape != values.shape or keys.shape[::2] != (1, len(ids)):
                return None
            cache.update(keys, values, number)
        return Prefix(ids, cache, kept["first"].to(device))

    def _made(self, module, ids: tuple[int, ...], device) -> Prefix:
        cache = self._new_cache()
        states = module(input_ids=torch.tensor([ids], device=device), past_key_values=cache, use_cache=True)[0]
        return Prefix(ids, cache, states[:, :1].clone())


def _key(module, ids: tuple[int, ...], device) -> str:
    """Of an instruction's tokens, an encoder's weights, and what it computes in and on."""
    compute = getattr(module.embed_tokens, "compute_dtype", None) or module.embed_tokens.weight.dtype
    named = (FORMAT, weights_hash(module), torch.device(device).type, str(compute), ids)
    return sha256(repr(named).encode()).hexdigest()
