"""Load a SANA ControlNet: a folder or file in diffusers' or NVlabs' naming to a SanaControlNetModel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..networks.controlnet import ControlNetSpec
from ..networks.precision import stored_dtype
from .files.build import build_from_config, load_strictly
from .files.checkpoint import Value
from .files.kinds import Kind, require_kind
from .files.open import open_checkpoint
from .naming import to_diffusers
from .naming.nvlabs import position_config
from .transformer import check_config, config_from_shapes

HINT = "Give Sana Load ControlNet a SANA ControlNet (models/controlnet)."


@dataclass(frozen=True)
class LoadedControlNet:
    """``quantised``: weights that a host still has to dequantise (quantised.formats.set_values)."""

    module: Any
    spec: ControlNetSpec
    path: Path
    quantised: Mapping[str, Value] = field(default_factory=dict)


def load_controlnet(path: Path) -> LoadedControlNet:
    """A SanaControlNetModel in the dtype of the file, with memory-mapped weights."""
    checkpoint = open_checkpoint(path)
    found = require_kind(checkpoint, (Kind.CONTROLNET,), HINT)
    positions = position_config(checkpoint)
    checkpoint = to_diffusers(checkpoint, found)

    from diffusers import SanaControlNetModel

    own = checkpoint.config_with("num_layers")
    if own is not None:
        check_config(own, checkpoint)
    module = build_from_config(
        SanaControlNetModel, checkpoint, own, lambda: {**config_from_shapes(checkpoint), **positions}
    )
    quantised = load_strictly(module, checkpoint)
    config = module.config
    width = config.num_attention_heads * config.attention_head_dim
    clips = not quantised and stored_dtype(module) == torch.float16
    spec = ControlNetSpec(config.in_channels, width, config.num_layers, clips)
    return LoadedControlNet(module, spec, checkpoint.path, quantised)
