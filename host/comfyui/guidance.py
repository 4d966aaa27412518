"""Perturbed-attention guidance in ComfyUI: one more prediction after those of classifier-free guidance."""

from __future__ import annotations

import uuid

import comfy.samplers

from ...networks.perturbed import Perturbation

KEY = "sana_perturbation"
"""The Perturbation of a call in its transformer_options."""


def apply_perturbation(patcher, perturbation: Perturbation | None):
    """A clone of a MODEL that samples with ``perturbation`` instead of the one that it had; None: without."""
    made = patcher.clone()
    options = made.model_options
    options["transformer_options"] = {**options["transformer_options"], KEY: perturbation}
    others = [f for f in options.get("sampler_post_cfg_function", []) if f is not led_away]
    options["sampler_post_cfg_function"] = others
    if perturbation is not None:
        made.set_model_sampler_post_cfg_function(led_away)
    return made


def led_away(arguments: dict):
    """ComfyUI's sampler_post_cfg_function: the guided x0, led away from the perturbed prediction."""
    options = arguments["model_options"]
    of_call = options["transformer_options"]
    perturbation = of_call[KEY]
    perturbed = {**options, "transformer_options": {**of_call, KEY: perturbation.perturbed()}}
    conditioning = [_named_apart(entry) for entry in arguments["cond"]]
    given = arguments["model"], [conditioning], arguments["input"], arguments["sigma"], perturbed
    (prediction,) = comfy.samplers.calc_cond_batch(*given)
    return arguments["denoised"] + (arguments["cond_denoised"] - prediction) * perturbation.scale


def _named_apart(entry: dict) -> dict:
    """A prompt with another id: EasyCache keeps what it reuses by it, and would mix up the two predictions."""
    return {**entry, "uuid": uuid.uuid5(entry["uuid"], KEY)} if "uuid" in entry else entry
