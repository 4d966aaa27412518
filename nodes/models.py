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
