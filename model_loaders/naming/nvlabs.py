"""NVlabs' names of the weights of SANA's transformers and ControlNets to diffusers' names.

From diffusers' convert_sana_to_diffusers.py, convert_sana_controlnet_to_diffusers.py and
convert_sana_video_to_diffusers.py: a fused qkv or kv is split, and weights that inference does not use are
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..files.checkpoint import Checkpoint, UnusableFile
from ..files.kinds import Kind

LEFT_OUT = r"y_embedder\.y_embedding$|pos_embed$|logvar_linear\."
BASE_MODEL = r"|blocks\.|final_layer\."
"""The file of a ControlNet also contains its base transformer."""

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
IMAGE = {"x_embedder.proj.": ("patch_embed.proj.",)}
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
"""Prefix of a name to the prefixes of its tensor's equal parts in diffusers."""

Blocks = tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...]

OF_TRANSFORMER: Blocks = ((r"blocks\.(\d+)\.", "transformer_blocks.{}.", BLOCK),)
OF_CONTROLNET: Blocks = (
    (r"controlnet\.(\d+)\.copied_block\.", "transformer_blocks.{}.", BLOCK),
    (r"controlnet\.(\d+)\.after_proj\.", "controlnet_blocks.{}.", {"": ("",)}),
)
"""Pattern for the prefix of a numbered block, its prefix in diffusers, and the table for the rest of the name."""


@dataclass(frozen=True)
class Names:
    """``top``: prefixes of names outside of blocks. ``left_out``: a pattern for names that are ignored."""

    top: dict[str, tuple[str, ...]]
    blocks: Blocks = OF_TRANSFORMER
    left_out: str = LEFT_OUT


NAMES = {
    Kind.CONTROLNET: Names({**TOP, **FLOW_TIME, **IMAGE, **INPUT}, OF_CONTROLNET, LEFT_OUT + BASE_MODEL),
    Kind.SPRINT: Names({**TOP, **SPRINT_TIME, **IMAGE}),
    Kind.VIDEO: Names({**TOP, **FLOW_TIME, **VIDEO}),
    Kind.IMAGE: Names({**TOP, **FLOW_TIME, **IMAGE}),
}


def to_diffusers(checkpoint: Checkpoint, kind: Kind) -> Checkpoint:
    """The same tensors under diffusers' names; UnusableFile for a key that a model of this kind does not have."""
    names = NAMES[kind]
    left_out = re.compile(names.left_out)
    return checkpoint.renamed(
        row for key in checkpoint if not left_out.match(key) for row in _rows(key, names, checkpoint, kind)
    )


def _rows(key: str, names: Names, checkpoint: Checkpoint, kind: Kind) -> Iterator[tuple[str, str, int, int]]:
    """Each new name of a tensor, with its part of the tensor."""
    prefix, rest, table = "", key, names.top
    for pattern, new, block_table in names.blocks:
        if (match := re.match(pattern, key)) is not None:
            prefix, rest, table = new.format(match[1]), key[match.end() :], block_table
    for old, new_names in table.items():
        if rest.startswith(old):
            for part, name in enumerate(new_names):
                yield prefix + name + rest[len(old) :], key, part, len(new_names)
            return
    raise UnusableFile(f"{checkpoint.path}: the key {key} does not belong to a {kind.label} in NVlabs' naming")


POSITIONS = {64: 1.0, 128: 2.0}
"""Interpolation scale by latent cells per side: SANA has position embeddings only at 2048 and 4096 pixels."""


def position_config(checkpoint: Checkpoint) -> dict:
    """sample_size and interpolation_scale, from the shape of NVlabs' pos_embed [1, cells², width].

    Empty without a pos_embed, as always in diffusers' naming. The table itself is computed, not loaded.
    """
    if "pos_embed" not in checkpoint:
        return {}
    shape = checkpoint.entries["pos_embed"].shape
    side = round(shape[1] ** 0.5) if len(shape) == 3 else 0
    if side == 0 or side**2 != shape[1]:
        raise UnusableFile(f"{checkpoint.path}: pos_embed has the shape {list(shape)}; [1, side², width] was expected")
    return {"sample_size": side, "interpolation_scale": POSITIONS.get(side)}
