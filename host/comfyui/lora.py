"""LoRAs as ComfyUI's patches: it merges them into the weights when they are used and restores them afterwards."""

from __future__ import annotations

import logging

import comfy.lora
import comfy.weight_adapter

from ...model_loaders.lora import LoadedLora
from ...networks.lora import MAGNITUDE, changed, pieces
from .packed import Packed

logger = logging.getLogger(__name__)

NETWORK = "diffusion_model."


class PeftDora(comfy.weight_adapter.WeightAdapterBase):
    """PEFT's DoRA, which sets the norm of each row; comfy's DoRA divides by the norm from before the LoRA."""

    name = "peft-dora"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight, key, strength, strength_model, offset, function, *args, **kwargs):
        return changed(weight, *self.weights, strength)


def network_shapes(patcher) -> dict[str, tuple[int, ...]]:
    """The transformer's weights, name in diffusers' module to shape."""
    network = patcher.model.diffusion_model
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    packed = [(name, part) for name, part in network.named_modules() if isinstance(part, Packed)]
    return shapes | {f"{name}.weight": part.floating_shape for name, part in packed}


def apply_lora(patcher, loaded: LoadedLora, strength: float):
    """A clone of a MODEL with a LoRA at ``strength``."""
    keys = {layer: f"{NETWORK}{layer}.weight" for layer in loaded.layers}
    patches = comfy.lora.load_lora(loaded.tensors, keys, log_missing=False)
    for layer, weight in keys.items():
        if f"{layer}.{MAGNITUDE}" in loaded.tensors:
            patches[weight] = PeftDora(set(), pieces(loaded.parts(layer)))
    unread = sorted(set(keys.values()) - {key for key in patches if isinstance(key, str)})
    if unread:
        raise ValueError(f"{loaded.path}: how it changes {unread[0]} is unsupported in this ComfyUI; update ComfyUI")
    if message := loaded.unused_keys_message():
        logger.warning(message)
    made = patcher.clone()
    made.add_patches(patches, strength)
    return made
