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

from .accelerated import Acceleration, called
from .prompts import PromptTokens
from .text_encoder import TOGETHER

FORMAT = "1"
"""Of what is kept on disk; another one is not read."""

LONG = 0.5
"""Seconds of computing an instruction from which its keys and values are kept on disk."""

PREFIXES, PROMPTS = 2, 32
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

    def cut(self, length: int, prompts: int = 1):
        """A cache of the first tokens, for so many prompts behind them.

        It may grow; the tensors are shared, since a cache grows by copies.
        """
        grown = copy.copy(self.cache)
        grown.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in grown.layers:
            kept = (part[..., :length, :].expand(prompts, -1, -1, -1) for part in (layer.keys, layer.values))
            layer.keys, layer.values = kept
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

    ``new_cache`` makes an empty cache of keys and values for its module; ``disk`` keeps an instruction's;
    ``acceleration`` calls the module.
    """

    def __init__(
        self, new_cache: Callable[[], Any], disk: Disk | None = None, acceleration: Acceleration | None = None
    ):
        self._new_cache, self.disk, self.acceleration = new_cache, disk, acceleration
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

    def encode(
        self, module, tokens: PromptTokens, device, weights: Hashable = None, patched: bool = False
    ) -> torch.Tensor:
        """The states of one prompt [1, L, width]: as :meth:`encode_all`."""
        return self.encode_all(module, [tokens], device, weights, patched)[0]

    @torch.no_grad()
    def encode_all(
        self, module, prompts: Sequence[PromptTokens], device, weights: Hashable = None, patched: bool = False
    ) -> list[torch.Tensor]:
        """The kept hidden states of each prompt, [1, L, width] in the module's compute dtype.

        They are on the CPU where the prompt is a repeated one, else on ``device``. Prompts behind the same
        instruction are computed in one call. ``weights``: anything that differs where the module's weights do;
        another one empties the cache. ``patched``: whether they may be others than the module's tensors say; nothing
        is kept on disk then.
        """
        weights = (weights, str(device))
        if weights != self._weights:
            self.clear()
            self._weights = weights
        different = list(dict.fromkeys(prompts))
        computed: dict[PromptTokens, torch.Tensor] = {}
        for some in _together([tokens for tokens in different if tokens not in self._states]):
            computed.update(zip(some, self._computed(module, some, device, None if patched else self.disk)))
        self._states.update((tokens, states.to("cpu", copy=True)) for tokens, states in computed.items())
        found = {tokens: computed.get(tokens, self._states[tokens]) for tokens in different}
        for tokens in different:
            self._states.move_to_end(tokens)
        while len(self._states) > max(PROMPTS, len(different)):
            self._states.popitem(last=False)
        return [computed.pop(tokens) if tokens in computed else found[tokens].clone() for tokens in prompts]

    def _computed(self, module, prompts: Sequence[PromptTokens], device, disk: Disk | None) -> list[torch.Tensor]:
        """Prompts with the same tokens before the kept ones in one call; shorter ones are filled up behind.

        Gemma is causal, so what is behind a prompt does not change its states.
        """
        length, prefix, more = _length_before(prompts[0]), None, {}
        if length:
            prefix, length = self._prefix(module, prompts[0].ids[:length], device, disk)
            more = {"past_key_values": prefix.cut(length, len(prompts))}
        longest = max(len(tokens.ids) for tokens in prompts)
        rest = [[*tokens.ids[length:], *[tokens.ids[-1]] * (longest - len(tokens.ids))] for tokens in prompts]
        given = {"input_ids": torch.tensor(rest, device=device), "use_cache": bool(more), **more}
        states = called(self.acceleration, module, given)[0]
        first = states[:, :1] if prefix is None else prefix.first.expand(len(prompts), -1, -1)
        return [
            torch.cat([start, own[tokens.first_kept - length : len(tokens.ids) - length]])[None]
            for tokens, start, own in zip(prompts, first, states)
        ]

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
        given = {"input_ids": torch.tensor([ids], device=device), "past_key_values": cache, "use_cache": True}
        states = called(self.acceleration, module, given)[0]
        return Prefix(ids, cache, states[:, :1].clone())


def _length_before(tokens: PromptTokens) -> int:
    """Tokens before the kept ones that are worth keeping, or 0."""
    length = min(tokens.first_kept, len(tokens.ids) - 1)
    return length if length >= SHORTEST else 0


def _together(prompts: Sequence[PromptTokens]) -> list[list[PromptTokens]]:
    """Prompts that one call computes: behind the same tokens, those of about one length."""
    groups: dict[tuple[int, ...], list[PromptTokens]] = {}
    for tokens in sorted(prompts, key=lambda tokens: len(tokens.ids)):
        groups.setdefault(tokens.ids[: _length_before(tokens)], []).append(tokens)
    return [group[n : n + TOGETHER] for group in groups.values() for n in range(0, len(group), TOGETHER)]


def _key(module, ids: tuple[int, ...], device) -> str:
    """Of an instruction's tokens, an encoder's weights, and what it computes in and on."""
    compute = getattr(module.embed_tokens, "compute_dtype", None) or module.embed_tokens.weight.dtype
    named = (FORMAT, weights_hash(module), torch.device(device).type, str(compute), ids)
    return sha256(repr(named).encode()).hexdigest()
