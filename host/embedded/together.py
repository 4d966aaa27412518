"""Several rows sampled together: those of one model, shape and schedule in one batch, each with its own noise.

A row's result is the one that it has alone, within the rounding of a product of matrices of another size: its noise
comes from its own generator, shorter prompts are padded with a mask, and no sampler looks from one row to another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from ...networks.memory import is_out_of_memory
from ...networks.transformer import padded_contexts
from ...samplers import goes_by_blocks
from ..contract import Sampling
from .devices import room_for_batches
from .runtime import WORDS, Guidance, Model, sample, step_bytes

NOISE = "noise_sampler"

Result = dict | Exception


@dataclass(frozen=True)
class Row:
    """What a row's node asks for, and how to ask again: a generator whose noise was taken does not give it twice."""

    request: Sampling
    again: Callable[[], Sampling]


def sample_together(rows: Sequence[Row]) -> list[Result]:
    """The LATENT of each, or why it has none. What cannot share a batch, or has no memory in it, is sampled alone."""
    groups: dict[Hashable, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(_shared(row.request) or number, []).append(number)
    results: dict[int, Result] = {}
    for numbers in groups.values():
        size = _most(rows[numbers[0]].request, len(numbers))
        for begin in range(0, len(numbers), size):
            some = numbers[begin : begin + size]
            results.update(zip(some, _sampled([rows[number] for number in some])))
    return [results[number] for number in range(len(rows))]


def _shared(request: Sampling) -> Hashable | None:
    """What rows of one batch have in common; None for one that is sampled alone."""
    conditionings = [request.positive, *([request.negative or []] if _guided(request) else [])]
    plain = isinstance(request.model, Model) and not goes_by_blocks(request.function)
    samples, mask = request.latent["samples"], request.latent.get("noise_mask")
    of_each = mask is None or (mask.ndim == samples.ndim and len(mask) in (1, len(samples)))
    if not plain or not of_each or any(len(c) != 1 or c[0][1].get("control") for c in conditionings):
        return None
    empty, of_mask = not samples.count_nonzero(), None if mask is None else mask.shape[1:]
    schedule = (request.function, tuple(request.sigmas.tolist()), request.cfg, frozenset(request.options))
    return (id(request.model), samples.shape[1:], empty, of_mask, schedule)


def _guided(request: Sampling) -> bool:
    return request.negative is not None and request.cfg != 1.0


def _most(request: Sampling, count: int) -> int:
    """How many rows have memory together, of ``count``."""
    if count == 1:
        return 1
    room = room_for_batches(request.model.device, request.model.module)
    one = step_bytes(request.model, Guidance(request.positive, request.negative), request.latent["samples"].shape)
    return count if room is None else max(1, min(count, room // max(one, 1)))


def _sampled(rows: Sequence[Row]) -> list[Result]:
    """Rows that share a batch. Halves where memory runs out after all; what else fails is tried row by row."""
    try:
        return _batch([row.request for row in rows]) if len(rows) > 1 else [_alone(rows[0].request)]
    except Exception as error:
        if len(rows) == 1:
            return [error]
        half = len(rows) // 2 if is_out_of_memory(error) else 1
    rows = [Row(row.again(), row.again) for row in rows]
    return [result for begin in range(0, len(rows), half) for result in _sampled(rows[begin : begin + half])]


def _alone(one: Sampling) -> dict:
    guidance = Guidance(one.positive, one.negative, one.cfg)
    given = (one.latent, one.noise, one.sigmas, one.function, one.seed, dict(one.options))
    return sample(one.model, guidance, *given)


def _batch(requests: Sequence[Sampling]) -> list[Result]:
    first, counts = requests[0], [len(one.latent["samples"]) for one in requests]
    scale = first.model.spec.family.guidance_scale
    negative = _joined([one.negative for one in requests], counts, scale) if _guided(first) else None
    guidance = Guidance(_joined([one.positive for one in requests], counts, scale), negative, first.cfg)
    latent = {"samples": torch.cat([one.latent["samples"] for one in requests])}
    if first.latent.get("noise_mask") is not None:
        latent["noise_mask"] = torch.cat([_mask(one.latent["noise_mask"], n) for one, n in zip(requests, counts)])
    noise, options = torch.cat([one.noise for one in requests]), dict(first.options)
    if NOISE in options:
        options[NOISE] = _noise_of_each([one.options[NOISE] for one in requests])
    made = sample(first.model, guidance, latent, noise, first.sigmas, first.function, first.seed, options)["samples"]
    ends = list(accumulate(counts))
    return [{**one.latent, "samples": made[end - n : end].clone()} for one, n, end in zip(requests, counts, ends)]


def _joined(conditionings: Sequence[Any], counts: Sequence[int], scale: float) -> list:
    """One conditioning of several: a context for each latent, shorter ones padded, and each one's guidance."""
    entries = [entry for ((entry,), n) in zip(conditionings, counts) for _ in range(n)]
    context, words = padded_contexts([states for states, _ in entries])
    scales = [float(options.get("guidance", scale)) for _, options in entries]
    return [[context, {"guidance": scales, WORDS: words}]]


def _mask(mask: torch.Tensor, count: int) -> torch.Tensor:
    """A noise mask of each latent: [count, ...]."""
    return mask.expand(count, *mask.shape[1:]) if len(mask) == 1 else mask


def _noise_of_each(samplers: Sequence[Callable]) -> Callable:
    """A noise sampler of a batch from those of its rows: each row has the noise that it has alone."""
    return lambda sigma, following: torch.cat([each(sigma, following) for each in samplers])
