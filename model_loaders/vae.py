"""Load one of SANA's autoencoders: a folder or file to a module and its VaeSpec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..networks.latent_spaces import VaeSpec
from .autoencoders import dc_ae, ltx2, wan
from .files.checkpoint import Checkpoint, Value
from .files.kinds import VAES, Kind, require_kind
from .files.open import open_checkpoint
from .naming import to_diffusers

HINT = "Give Sana Load VAE a DC-AE, a Wan 2.1 VAE or an LTX-2 video VAE (models/vae)."


@dataclass(frozen=True)
class LoadedVae:
    """``quantised``: weights that a host still has to dequantise (quantised.formats.set_values)."""

    module: Any
    spec: VaeSpec
    path: Path
    quantised: Mapping[str, Value] = field(default_factory=dict)


BUILDERS: dict[Kind, Callable[[Checkpoint], tuple[object, VaeSpec, dict[str, Value]]]] = {
    Kind.DC_AE: dc_ae.build,
    Kind.WAN_VAE: wan.build,
    Kind.LTX2_VAE: ltx2.build,
}
"""The function that builds module, spec and quantised values from a checkpoint in diffusers' naming."""


def load_vae(path: Path) -> LoadedVae:
    """An AutoencoderDC, AutoencoderKLWan or AutoencoderKLLTX2Video in the dtype of the file, memory-mapped."""
    checkpoint = open_checkpoint(path)
    found = require_kind(checkpoint, VAES, HINT)
    module, spec, quantised = BUILDERS[found.kind](to_diffusers(checkpoint, found))
    return LoadedVae(module, spec, checkpoint.path, quantised)
