"""What a MODEL's transformer keeps from one step of a run to the next, and on a card from its load on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.patcher_extension
import torch

from ...networks.card_layers import join_projections

logger = logging.getLogger(__name__)

KINDS = ("CALC_COND_BATCH", "PREDICT_NOISE", "SAMPLER_SAMPLE", "APPLY_MODEL", "DIFFUSION_MODEL")
"""Wrappers around a model's call, which may change a prompt under its name."""


@contextmanager
def of_one_run(guider) -> Iterator[None]:
    """Within it the network of a guider's MODEL keeps what it reads of each prompt, and at its end drops it.

    Nothing is kept where weights or prompts may change within the run: with hooks, or a node that calls the model
    its own way.
    """
    network = guider.model_patcher.model.diffusion_model
    before = getattr(network, "kept_of_run", None)
    network.kept_of_run = {} if _stays_the_same(guider) else None
    try:
        yield
    finally:
        network.kept_of_run = before


def _stays_the_same(guider) -> bool:
    patcher = guider.model_patcher
    hooked = any(prompt.get("hooks") for prompts in guider.conds.values() for prompt in prompts)
    own_calls = "model_function_wrapper" in {**patcher.model_options, **guider.model_options}
    return not (hooked or own_calls or getattr(patcher, "forced_hooks", None))


def of_one_call(network, context: torch.Tensor, options: Mapping) -> dict | None:
    """What earlier calls of this run kept of the prompts in ``context``, at first an empty dict; None: keep nothing.

    ComfyUI names the prompts of a call, and asks for a network's compilation with the call.
    """
    kept: dict[Any, dict] | None = getattr(network, "kept_of_run", None)
    names = tuple(options.get("uuids") or ())
    if kept is None or not names or torch.compiler.is_compiling():
        return None
    if any(_wrappers(kind, options) for kind in KINDS):
        return None
    return kept.setdefault((names, context.shape, context.dtype, context.device), {})


def _wrappers(kind: str, options: Mapping) -> list:
    known = getattr(comfy.patcher_extension.WrappersMP, kind, None)  # 0.3.64 has fewer kinds
    return comfy.patcher_extension.get_all_wrappers(known, options) if known else []


def join_on_load(patcher, device_to, *_) -> None:
    """One product for queries, keys and values, where their weights have come to a card as they are computed with."""
    joined, layers = join_projections(patcher.model.diffusion_model)
    if 0 < joined < layers:
        logger.info(
            "%d of %d self-attentions compute queries, keys and values one by one: their weights are cast, quantised, "
            "offloaded, or changed by a LoRA at each use",
            layers - joined,
            layers,
        )
