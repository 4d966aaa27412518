"""LoRAs through ComfyUI's patches: it merges them into the weights where they are used and takes them out again."""

from __future__ import annotations

import logging

import comfy.lora
import comfy.weight_adapter

from ...model_loaders.lora import LoadedLora
from ...networks.lora import MAGNITUDE, changed, pieces

logger = logging.getLogger(__name__)

NETWORK = "diffusion_model."


class PeftDora(comfy.weight_adapter.WeightAdapterBase):
    """PEFT's DoRA, which sets rows to a length; comfy's own divides by the length that they had before the LoRA."""

    name = "peft-dora"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight, key, strength, strength_model, offset, function, *args, **kwargs):
        return changed(weight, *self.weights, strength)


def network_shapes(patcher) -> dict[str, tuple[int, ...]]:
    """The transformer's weights, name in diffusers' module to shape."""
    return {name: tuple(value.shape) for name, value in patcher.model.diffusion_model.state_dict().items()}


def apply_lora(patcher, loaded: LoadedLora, strength: float):
    """A clone of a MODEL with a LoRA at ``strength``."""
    places = {layer: f"{NETWORK}{layer}.weight" for layer in loaded.layers}
    patches = comfy.lora.load_lora(loaded.tensors, places, log_missing=False)
    for layer, place in places.items():
        if f"{layer}.{MAGNITUDE}" in loaded.tensors:
            patches[place] = PeftDora(set(), pieces(loaded.parts(layer)))
    unread = sorted(set(places.values()) - {key for key in patches if isinstance(key, str)})
    if unread:
        raise ValueError(f"{loaded.path}: this ComfyUI cannot read what the file does to {unread[0]}; update ComfyUI")
    if message := loaded.unused_keys_message():
        logger.warning(message)
    made = patcher.clone()
    made.add_patches(patches, strength)
    return made
