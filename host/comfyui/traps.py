"""What core nodes do to a SANA model without a word, and what a person is told of it."""

from __future__ import annotations

import torch

from ...networks.families import TransformerSpec
from . import editor
from .lora import NETWORK, network_shapes

MOST_STEPS = 8
"""SANA-Sprint is made for 1 to 4 steps; from here on more cost time and details."""

ENCODER = "sana_encoder"
"""The entry of a CONDITIONING with the fingerprint of the text encoder that made it."""

UNKNOWN_LORA = (
    "this LoRA has no weight of this SANA model and changes nothing: it was made for another model. "
    "Sana Load LoRA reads more kinds of LoRA files, and says what does not match"
)


def tell(spec: TransformerSpec, guider, steps: int) -> None:
    """Notes about a run that works, but probably not as the person expects. ``guider``: ComfyUI's, with its conds."""
    cfg = getattr(guider, "cfg", 1.0)
    if spec.family.uses_angles and guider.conds.get("negative") is not None and abs(cfg - 1.0) > 1e-6:
        editor.note(
            f"cfg is {cfg:g}: SANA-Sprint has its guidance inside, so this takes twice as long and spoils the colours. "
            "Set cfg to 1, and the guidance with guidance_scale of Sana Encode Prompt"
        )
    if spec.family.uses_angles and steps > MOST_STEPS:
        editor.note(f"{steps} steps: SANA-Sprint is made for 1 to 4, and 2 are best. More do not improve the image")
    _tell_of_encoder(guider)


def _tell_of_encoder(guider) -> None:
    """A note where a prompt was encoded by another text encoder than that of the model's pipeline."""
    own = getattr(guider.model_patcher.model, ENCODER, None)
    made = {prompt.get(ENCODER, own) for prompts in guider.conds.values() for prompt in prompts or ()}
    if own is not None and made - {own}:
        editor.note(
            "the prompt was encoded by another text encoder than the model's own, which it was not trained with: "
            "connect CLIP from the loader of the model"
        )


def tell_of_patches(patcher, patches) -> None:
    """A note where a LoRA, from ComfyUI's own loader, does not fit."""
    if not patches:
        editor.note(UNKNOWN_LORA)
    elif key := _misfit(patcher, patches):
        editor.note(f"this LoRA was made for a SANA model of another size: its {key} does not fit this one's")


def _misfit(patcher, patches) -> str | None:
    """The first weight whose LoRA has other dimensions."""
    shapes = {f"{NETWORK}{name}": shape for name, shape in network_shapes(patcher).items()}
    for key, patch in patches.items():
        weights = getattr(patch, "weights", None) if getattr(patch, "name", "") == "lora" else None
        shape = shapes.get(key) if isinstance(key, str) else None
        if not weights or not shape or not all(isinstance(part, torch.Tensor) for part in weights[:2]):
            continue
        up, down = weights[:2]
        if up.shape[0] != shape[0] or down.shape[1] != shape[1]:
            return key.removeprefix("diffusion_model.")
    return None
