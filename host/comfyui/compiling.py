"""Sana Compile in ComfyUI: a MODEL whose network is called in compiled blocks or CUDA graphs."""

from __future__ import annotations

import copy
import inspect

import comfy.patcher_extension

from ...networks import accelerated

KEY = "sana_compile"
"""The Acceleration of a call in its transformer_options."""


def compiled(patcher, mode: str):
    """A clone of a MODEL in a mode of Sana Compile, in place of the one that it had."""
    made = _fixed_clone(patcher) if accelerated.parse_mode(mode) != "off" else patcher.clone()
    network = made.model.diffusion_model
    chosen = accelerated.accelerated(network, mode, made.load_device, made.model.sana_spec.name)
    options = made.model_options
    options["transformer_options"] = {**options["transformer_options"], KEY: chosen}
    made.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_DETACH, KEY, _release)
    return made


def _fixed_clone(patcher):
    """A clone whose weights stay where they are in a run: 0.33's dynamic memory brings them at each use."""
    takes = "disable_dynamic" in inspect.signature(patcher.clone).parameters
    return patcher.clone(disable_dynamic=True) if takes else patcher.clone()


def _release(patcher, *_) -> None:
    accelerated.release(patcher.model.diffusion_model)


def compiled_vae(vae, mode: str):
    """A VAE of ours with its decoder in that mode; another VAE as it is."""
    made = copy.copy(vae)
    if hasattr(vae, "sana_mode"):
        made.sana_mode, made.sana_coder = mode, None
    return made
