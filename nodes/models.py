"""Which MODEL a node was given."""

from __future__ import annotations

from .. import host


def require_sana(model):
    """The TransformerSpec of a MODEL; ValueError for one that is not SANA's."""
    spec = host.current().model_spec(model)
    if spec is None:
        kind = host.current().describe_model(model)
        raise ValueError(f"this MODEL ({kind}) is not SANA: load one with Sana Load Pipeline or Sana Load Transformer")
    return spec


def require_sprint(model):
    """The same for SANA-Sprint alone."""
    spec = require_sana(model)
    if not spec.family.uses_angles:
        raise ValueError(f"this MODEL is {spec.name}, not SANA-Sprint: sample it with {spec.family.node}")
    return spec


def require_flow(model):
    """The same for the models that sample by flow matching."""
    spec = require_sana(model)
    if spec.family.uses_angles:
        raise ValueError(f"this MODEL is {spec.name}, which flow matching cannot sample: use {spec.family.node}")
    return spec
