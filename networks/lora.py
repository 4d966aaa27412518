"""Apply a LoRA to a weight: W + strength * alpha / rank * up @ down (arXiv 2106.09685), and DoRA."""

from __future__ import annotations

from collections.abc import Mapping

MAGNITUDE = "magnitude"
"""PEFT's DoRA. It is not ComfyUI's ``dora_scale``, which divides by the norm of other rows."""


def patched(weight, loaded: LoadedLora, layer: str, strength: float):
    """A layer's ``weight`` with a LoRA, in its own dtype; ValueError for kinds that only ComfyUI knows."""
    parts = loaded.parts(layer)
    others = sorted(parts.keys() - {"lora_up.weight", "lora_down.weight", "alpha", MAGNITUDE})
    if others:
        raise ValueError(f"{layer} is changed by {others[0]}, which the embedded host does not know: run with ComfyUI")
    return changed(weight, *pieces(parts), strength)


def pieces(parts: Mapping) -> tuple:
    """up, down, alpha / rank and PEFT's DoRA magnitude (or None) from one layer's tensors."""
    down = parts["lora_down.weight"]
    scale = float(parts["alpha"]) / down.shape[0] if "alpha" in parts else 1.0
    return parts["lora_up.weight"], down, scale, parts.get(MAGNITUDE)


def changed(weight, up, down, scale: float, magnitude, strength: float):
    """W + strength * scale * up @ down; a ``magnitude`` sets the norm of each row (DoRA, arXiv 2402.09353)."""
    plain = weight.float()
    up, down = up.to(plain), down.to(plain)
    change = scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    if magnitude is not None:
        whole = plain + change
        norms = whole.flatten(1).norm(dim=1)
        rows = (magnitude.to(plain).flatten() / norms).view(-1, *(1,) * (weight.ndim - 1))
        change = whole * rows - plain
    return (plain + strength * change).to(weight.dtype)
