"""NVlabs' names of the weights of SANA's transformers and ControlNets, and diffusers' for the same.

After diffusers' convert_sana_to_diffusers.py, convert_sana_controlnet_to_diffusers.py and
convert_sana_video_to_diffusers.py: a fused qkv or kv is cut into its parts, and what inference does not use
is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .checkpoints import Checkpoint, UnusableFile

LEFT_OUT = r"y_embedder\.y_embedding$|pos_embed$|logvar_linear\."
BASE_MODEL = r"|blocks\.|final_layer\."
"""The transformer that a ControlNet leads stands in the ControlNet's file too."""

TOP = {
    "y_embedder.y_proj.fc1.": ("caption_projection.linear_1.",),
    "y_embedder.y_proj.fc2.": ("caption_projection.linear_2.",),
    "attention_y_norm.": ("caption_norm.",),
    "t_block.1.": ("time_embed.linear.",),
    "final_layer.linear.": ("proj_out.",),
    "final_layer.scale_shift_table": ("scale_shift_table",),
}
FLOW_TIME = {
    "t_embedder.mlp.0.": ("time_embed.emb.timestep_embedder.linear_1.",),
    "t_embedder.mlp.2.": ("time_embed.emb.timestep_embedder.linear_2.",),
}
SPRINT_TIME = {
    "t_embedder.mlp.0.": ("time_embed.timestep_embedder.linear_1.",),
    "t_embedder.mlp.2.": ("time_embed.timestep_embedder.linear_2.",),
    "cfg_embedder.mlp.0.": ("time_embed.guidance_embedder.linear_1.",),
    "cfg_embedder.mlp.2.": ("time_embed.guidance_embedder.linear_2.",),
}
PICTURE = {"x_embedder.proj.": ("patch_embed.proj.",)}
VIDEO = {"x_embedder.proj.": ("patch_embedding.",)}
INPUT = {"controlnet.0.before_proj.": ("input_block.",)}
BLOCK = {
    "scale_shift_table": ("scale_shift_table",),
    "attn.qkv.": ("attn1.to_q.", "attn1.to_k.", "attn1.to_v."),
    "attn.q_norm.": ("attn1.norm_q.",),
    "attn.k_norm.": ("attn1.norm_k.",),
    "attn.proj.": ("attn1.to_out.0.",),
    "cross_attn.q_linear.": ("attn2.to_q.",),
    "cross_attn.kv_linear.": ("attn2.to_k.", "attn2.to_v."),
    "cross_attn.q_norm.": ("attn2.norm_q.",),
    "cross_attn.k_norm.": ("attn2.norm_k.",),
    "cross_attn.proj.": ("attn2.to_out.0.",),
    "mlp.inverted_conv.conv.": ("ff.conv_inverted.",),
    "mlp.depth_conv.conv.": ("ff.conv_depth.",),
    "mlp.point_conv.conv.": ("ff.conv_point.",),
    "mlp.t_conv.": ("ff.conv_temp.",),
}
"""Beginning of a name to the beginnings that its tensor's equal parts have in diffusers."""

OF_TRANSFORMER = ((r"blocks\.(\d+)\.", "transformer_blocks.{}.", BLOCK),)
OF_CONTROLNET = (
    (r"controlnet\.(\d+)\.copied_block\.", "transformer_blocks.{}.", BLOCK),
    (r"controlnet\.(\d+)\.after_proj\.", "controlnet_blocks.{}.", {"": ("",)}),
)
"""What begins the names of a numbered block, what that is in diffusers, and the table for what follows."""


@dataclass(frozen=True)
class Naming:
    """``kind``: what the same tensors are in diffusers' naming. ``left_out``: beginnings of names (a pattern)."""

    kind: str
    top: dict[str, tuple[str, ...]]
    blocks: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = OF_TRANSFORMER
    left_out: str = LEFT_OUT


NAMINGS = {
    "SANA ControlNet in NVlabs' naming": Naming(
        "SANA ControlNet", {**TOP, **FLOW_TIME, **PICTURE, **INPUT}, OF_CONTROLNET, LEFT_OUT + BASE_MODEL
    ),
    "SANA-Sprint transformer in NVlabs' naming": Naming("SANA-Sprint transformer", {**TOP, **SPRINT_TIME, **PICTURE}),
    "SANA-Video transformer in NVlabs' naming": Naming("SANA-Video transformer", {**TOP, **FLOW_TIME, **VIDEO}),
    "SANA transformer in NVlabs' naming": Naming("SANA transformer", {**TOP, **FLOW_TIME, **PICTURE}),
}


def to_diffusers(checkpoint: Checkpoint, kind: str) -> tuple[Checkpoint, str]:
    """The same tensors under diffusers' names, and what they are there; as they are where ``kind`` is diffusers'.

    UnusableFile names a key that no SANA model of that kind has.
    """
    naming = NAMINGS.get(kind)
    if naming is None:
        return checkpoint, kind
    left_out = re.compile(naming.left_out)
    rows = [row for key in checkpoint if not left_out.match(key) for row in _parts(key, naming, checkpoint)]
    return checkpoint.renamed(checkpoint.table(rows)), naming.kind


def _parts(key: str, naming: Naming, checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Each new name of a tensor, with the part of it that goes there."""
    prefix, rest, table = "", key, naming.top
    for pattern, new, names in naming.blocks:
        if (match := re.match(pattern, key)) is not None:
            prefix, rest, table = new.format(match[1]), key[match.end() :], names
    for old, new_names in table.items():
        if rest.startswith(old):
            for part, name in enumerate(new_names):
                yield prefix + name + rest[len(old) :], (key, part, len(new_names))
            return
    raise UnusableFile(f"{checkpoint.path}: the key {key} is none of a {naming.kind}'s in NVlabs' naming")


POSITIONS = {64: 1.0, 128: 2.0}
"""Interpolation scale by latent cells on a side: SANA knows positions at 2048 and 4096 pixels, not below."""


def position_config(checkpoint: Checkpoint) -> dict:
    """sample_size and interpolation_scale, read off the shape of NVlabs' pos_embed [1, cells², width].

    Empty without one: files in diffusers' naming never have it. The table itself is computed anew.
    """
    shape = checkpoint.shapes.get("pos_embed")
    if shape is None:
        return {}
    side = round(shape[1] ** 0.5) if len(shape) == 3 else 0
    if side == 0 or side**2 != shape[1]:
        raise UnusableFile(f"{checkpoint.path}: pos_embed has the shape {list(shape)} where [1, side², width] belongs")
    return {"sample_size": side, "interpolation_scale": POSITIONS.get(side)}
