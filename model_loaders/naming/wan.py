"""Wan's names of its VAE's weights (ComfyUI's wan_2.1_vae.safetensors) to diffusers' names.

From diffusers' convert_wan_to_diffusers.py.
"""

from __future__ import annotations

import re

from ..files.checkpoint import Checkpoint, UnusableFile
from ..files.kinds import Kind

RESIDUAL = {"0.gamma": "norm1.gamma", "2.": "conv1.", "3.gamma": "norm2.gamma", "6.": "conv2."}
TOP = {
    "encoder.conv1.": "encoder.conv_in.",
    "decoder.conv1.": "decoder.conv_in.",
    "encoder.head.0.": "encoder.norm_out.",
    "decoder.head.0.": "decoder.norm_out.",
    "encoder.head.2.": "encoder.conv_out.",
    "decoder.head.2.": "decoder.conv_out.",
    "conv1.": "quant_conv.",
    "conv2.": "post_quant_conv.",
}


def to_diffusers(checkpoint: Checkpoint, kind: Kind = Kind.WAN_VAE) -> Checkpoint:
    """The same tensors under diffusers' names; UnusableFile for a key that a Wan 2.1 VAE does not have."""
    resnets = _resnets_per_stage(checkpoint)
    return checkpoint.renamed((_diffusers_name(key, resnets, checkpoint), key, 0, 1) for key in checkpoint)


def _resnets_per_stage(checkpoint: Checkpoint) -> int:
    """The number of blocks before the decoder's first upsampling."""
    indices = [int(m[1]) for key in checkpoint if (m := re.match(r"decoder\.upsamples\.(\d+)\.resample\.", key))]
    if not indices:
        raise UnusableFile(f"{checkpoint.path}: it has no key such as decoder.upsamples.3.resample.1 of a Wan VAE")
    return min(indices)


def _diffusers_name(key: str, resnets: int, checkpoint: Checkpoint) -> str:
    for old, new in TOP.items():
        if key.startswith(old):
            return new + key[len(old) :]
    if match := re.match(r"(encoder|decoder)\.middle\.(\d+)\.(.*)", key):
        half, index, rest = match[1], int(match[2]), match[3]
        block = "attentions.0." + rest if index == 1 else f"resnets.{index // 2}." + _in_block(rest)
        return f"{half}.mid_block.{block}"
    if match := re.match(r"encoder\.downsamples\.(\d+)\.(.*)", key):
        return f"encoder.down_blocks.{match[1]}.{_in_block(match[2])}"
    if match := re.match(r"decoder\.upsamples\.(\d+)\.(.*)", key):
        stage, index = divmod(int(match[1]), resnets + 1)
        block = "upsamplers.0." + match[2] if index == resnets else f"resnets.{index}." + _in_block(match[2])
        return f"decoder.up_blocks.{stage}.{block}"
    raise UnusableFile(f"{checkpoint.path}: the key {key} does not belong to a Wan 2.1 VAE")


def _in_block(rest: str) -> str:
    """A name inside a residual or resampling block."""
    if rest.startswith("residual."):
        inner = rest.removeprefix("residual.")
        for old, new in RESIDUAL.items():
            if inner.startswith(old):
                return new + inner[len(old) :]
    return rest.replace("shortcut.", "conv_shortcut.")
