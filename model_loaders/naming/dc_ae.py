"""mit-han-lab's and NVlabs' names of a DC-AE's weights to diffusers' names.

From diffusers' convert_dcae_to_diffusers.py: a fused qkv is split, and 1 x 1 kernels that are matrices in
diffusers lose their last two dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..files.checkpoint import Checkpoint, UnusableFile
from ..files.kinds import Kind

WRAPPERS = re.compile(r"\b(main|op_list)\.")
"""Names of containers: a residual connection, a sequence."""

TOP: dict[str, tuple[str, ...]] = {
    r"encoder\.project_in\.conv\.conv\.": ("encoder.conv_in.conv.",),
    r"encoder\.project_in\.conv\.": ("encoder.conv_in.",),
    r"encoder\.project_out\.0\.conv\.": ("encoder.conv_out.",),
    r"decoder\.project_in\.conv\.": ("decoder.conv_in.",),
    r"decoder\.project_out\.0\.": ("decoder.norm_out.",),
    r"decoder\.project_out\.2\.conv\.conv\.": ("decoder.conv_out.conv.",),
    r"decoder\.project_out\.2\.conv\.": ("decoder.conv_out.",),
}
BLOCK: dict[str, tuple[str, ...]] = {
    r"context_module\.qkv\.conv\.": ("attn.to_q.", "attn.to_k.", "attn.to_v."),
    r"context_module\.aggreg\.(\d+)\.0\.": (r"attn.to_qkv_multiscale.\1.proj_in.",),
    r"context_module\.aggreg\.(\d+)\.1\.": (r"attn.to_qkv_multiscale.\1.proj_out.",),
    r"context_module\.proj\.conv\.": ("attn.to_out.",),
    r"context_module\.proj\.norm\.": ("attn.norm_out.",),
    r"local_module\.inverted_conv\.conv\.": ("conv_out.conv_inverted.",),
    r"local_module\.depth_conv\.conv\.": ("conv_out.conv_depth.",),
    r"local_module\.point_conv\.conv\.": ("conv_out.conv_point.",),
    r"local_module\.point_conv\.norm\.": ("conv_out.norm.",),
    r"conv1\.conv\.": ("conv1.",),
    r"conv2\.conv\.": ("conv2.",),
    r"conv2\.norm\.": ("norm.",),
    r"conv\.conv\.": ("conv.",),
}
"""Prefix of a name to the prefixes of its tensor's equal parts in diffusers; the first match is used."""

MATRIX = re.compile(r"attn\.(to_q|to_k|to_v|to_out)\.weight$")
STAGES = {"encoder": "encoder.down_blocks", "decoder": "decoder.up_blocks"}


def to_diffusers(checkpoint: Checkpoint, kind: Kind = Kind.DC_AE) -> Checkpoint:
    """The same tensors under diffusers' names; UnusableFile for a key that a DC-AE does not have."""
    named = checkpoint.renamed(row for key in checkpoint for row in _rows(key, checkpoint))
    return named.as_matrices([key for key in named if MATRIX.search(key)])


def _rows(key: str, checkpoint: Checkpoint) -> Iterator[tuple[str, str, int, int]]:
    """Each new name of a tensor, with its part of the tensor."""
    prefix, rest, table = "", WRAPPERS.sub("", key), TOP
    if match := re.match(r"(encoder|decoder)\.stages\.(\d+)\.(\d+)\.", rest):
        prefix, rest, table = f"{STAGES[match[1]]}.{match[2]}.{match[3]}.", rest[match.end() :], BLOCK
    for old, new_names in table.items():
        if found := re.match(old, rest):
            for part, name in enumerate(new_names):
                yield prefix + found.expand(name) + rest[found.end() :], key, part, len(new_names)
            return
    raise UnusableFile(f"{checkpoint.path}: the key {key} does not belong to a DC-AE in NVlabs' naming")
