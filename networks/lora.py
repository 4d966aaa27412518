"""Apply a LoRA to a weight: W + strength * alpha / rank * up @ down (arXiv 2106.09685), and DoRA."""

from __future__ import annotations

from collections.abc import Mapping

MAGNITUDE = "magnitude"
"""PEFT's DoRA. It is not ComfyUI's ``dora_scale``, which divides by the norm of other rows."""


PLAIN = {"lora_up.weight", "lora_down.weight", "alpha", MAGNITUDE}
"""The parts of a plain LoRA; LoKr, LoHa and the like have others."""


def check_plain(parts: Mapping, layer: str) -> None:
    """ValueError for kinds of LoRA that only ComfyUI applies."""
    if others := sorted(parts.keys() - PLAIN):
        raise ValueError(
            f"the LoRA changes {layer} by {others[0]}, which is unsupported without ComfyUI: run with --host comfyui"
        )


def patched(weight, parts: Mapping, strength: float):
    """A layer's ``weight`` with the ``parts`` of a plain LoRA, in its own dtype."""
    up, down, scale, magnitude = pieces(parts)
    return changed(weight, up, down, scale, magnitude, strength)


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
