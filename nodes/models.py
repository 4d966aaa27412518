"""Checks of a node's MODEL input."""

from __future__ import annotations

from .. import host
from ..networks.long_video import check_run


def require_sana(model):
    """The TransformerSpec of a MODEL; ValueError if it is not SANA."""
    spec = host.current().model_spec(model)
    if spec is None:
        kind = host.current().describe_model(model)
        raise ValueError(f"this MODEL ({kind}) is not SANA: load one with Sana Load Pipeline or Sana Load Transformer")
    return spec


def require_sprint(model):
    """The same, for SANA-Sprint only."""
    spec = require_sana(model)
    if not spec.family.uses_angles:
        raise ValueError(f"this MODEL is {spec.name}, not SANA-Sprint: sample it with {spec.family.node}")
    return spec


def require_flow(model):
    """The same, for flow-matching models only."""
    spec = require_sana(model)
    if spec.family.uses_angles:
        raise ValueError(f"this MODEL is {spec.name}, which flow matching cannot sample: use {spec.family.node}")
    if spec.family.block_causal:
        raise ValueError(
            f"this MODEL is {spec.name}, which is sampled block by block: use {spec.family.node}, or Sana Long Video "
            "Sigmas for its noise levels"
        )
    return spec


def require_long(model):
    """The same, for LongSANA only."""
    spec = require_sana(model)
    check_run(spec, blocks=True)
    return spec


def require_blocks(model) -> int:
    """The number of blocks of an image model that is not Sprint, whose attention can be perturbed; else ValueError."""
    spec = require_sana(model)
    if spec.family.uses_angles or spec.family.video:
        raise ValueError(
            f"this MODEL is {spec.name}: perturbed-attention guidance is for SANA's image models that are not Sprint, "
            "as in diffusers; remove Sana PAG"
        )
    names = host.current().weight_shapes(model)
    return len({name.split(".")[1] for name in names if name.startswith("transformer_blocks.")})
