"""Tables of other projects' names for the same weights, to diffusers' names."""

from __future__ import annotations

from ..files.checkpoint import Checkpoint
from ..files.kinds import Description, Kind, Naming
from . import dc_ae, nvlabs, wan

TABLES = {
    (Kind.SPRINT, Naming.NVLABS): nvlabs.to_diffusers,
    (Kind.IMAGE, Naming.NVLABS): nvlabs.to_diffusers,
    (Kind.VIDEO, Naming.NVLABS): nvlabs.to_diffusers,
    (Kind.CONTROLNET, Naming.NVLABS): nvlabs.to_diffusers,
    (Kind.DC_AE, Naming.NVLABS): dc_ae.to_diffusers,
    (Kind.WAN_VAE, Naming.WAN): wan.to_diffusers,
}
"""The supported namings besides diffusers'."""


def to_diffusers(checkpoint: Checkpoint, found: Description) -> Checkpoint:
    """The same tensors under diffusers' names; UnusableFile for a key that such a model does not have."""
    table = TABLES.get((found.kind, found.naming))
    return checkpoint if table is None else table(checkpoint, found.kind)
