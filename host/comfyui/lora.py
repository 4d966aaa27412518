"""LoRAs through ComfyUI's patches: it merges them into the weights where they are used and takes them out again."""

from __future__ import annotations

import logging

import comfy.lora

from ...model_loaders.lora import LoadedLora

NETWORK = "diffusion_model."


def network_shapes(patcher) -> dict[str, tuple[int, ...]]:
    """The transformer's weights, name in diffusers' module to shape."""
    return {name: tuple(value.shape) for name, value in patcher.model.diffusion_model.state_dict().items()}


def apply_lora(patcher, loaded: LoadedLora, strength: float):
    """A clone of a MODEL with a LoRA at ``strength``."""
    places = {layer: f"{NETWORK}{layer}.weight" for layer in loaded.layers}
    patches = comfy.lora.load_lora(loaded.tensors, places, log_missing=False)
    unread = sorted(set(places.values()) - {key for key in patches if isinstance(key, str)})
    if unread:
        raise ValueError(f"{loaded.path}: this ComfyUI cannot read what the file does to {unread[0]}; update ComfyUI")
    if said := loaded.said_of_strays():
        logging.warning(said)
    made = patcher.clone()
    made.add_patches(patches, strength)
    return made
