"""NVlabs' names of a SANA-Video transformer's weights, and diffusers' for the same.

After diffusers' convert_sana_video_to_diffusers.py: a fused qkv or kv is cut into its parts, and what
inference does not use is left out.
"""

from __future__ import annotations

import re

from .checkpoints import Checkpoint, UnusableFile

LEFT_OUT = re.compile(r"(y_embedder\.y_embedding|pos_embed|logvar_linear\..*)$")

TOP = {
    "x_embedder.proj.": ("patch_embedding.",),
    "y_embedder.y_proj.fc1.": ("caption_projection.linear_1.",),
    "y_embedder.y_proj.fc2.": ("caption_projection.linear_2.",),
    "attention_y_norm.": ("caption_norm.",),
    "t_embedder.mlp.0.": ("time_embed.emb.timestep_embedder.linear_1.",),
    "t_embedder.mlp.2.": ("time_embed.emb.timestep_embedder.linear_2.",),
    "t_block.1.": ("time_embed.linear.",),
    "final_layer.linear.": ("proj_out.",),
    "final_layer.scale_shift_table": ("scale_shift_table",),
}
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


def to_diffusers(checkpoint: Checkpoint) -> Checkpoint:
    """The same tensors under diffusers' names; UnusableFile names a key that is none of SANA-Video's."""
    table = {}
    for key in checkpoint:
        if LEFT_OUT.match(key):
            continue
        for part, (new, parts) in enumerate(_names(key, checkpoint)):
            table[new] = (key, part, parts)
    return checkpoint.renamed(table)


def _names(key: str, checkpoint: Checkpoint) -> list[tuple[str, int]]:
    block = re.match(r"blocks\.(\d+)\.", key)
    prefix, rest = (block[0], key[block.end() :]) if block else ("", key)
    for old, new in (BLOCK if block else TOP).items():
        if rest.startswith(old):
            return [
                (prefix.replace("blocks", "transformer_blocks") + name + rest[len(old) :], len(new)) for name in new
            ]
    raise UnusableFile(f"{checkpoint.path}: the key {key} is none of a SANA-Video transformer's")
