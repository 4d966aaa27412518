"""Checks of a node's MODEL input."""

from __future__ import annotations

from .. import host


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
    return spec
