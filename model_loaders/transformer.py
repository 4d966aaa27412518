"""Load a SANA transformer: a folder or file in diffusers' or NVlabs' naming to a module."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..networks.families import FAMILIES, LARGEST_SAMPLE_SIZE, Family, TransformerSpec
from ..networks.precision import stored_dtype
from .files.build import build_from_config, load_strictly
from .files.checkpoint import Checkpoint, UnusableFile, Value
from .files.kinds import PREFIX, TRAINING_PREFIX, TRANSFORMERS, of_variant, require_kind
from .files.open import open_checkpoint
from .files.whole import written_whole
from .naming import to_diffusers
from .naming.nvlabs import position_config
from .quantised.writer import StoredWeight, write_quantised

HINT = "Give Sana Load Transformer a SANA transformer (models/diffusion_models)."

SELF_HEAD_DIM = 32
CROSS_HEAD_DIMS = (112, 72, 32)
VIDEO_HEAD_DIMS = (112, 32)
"""Head sizes of published models, largest first: they cannot be read from shapes."""


@dataclass(frozen=True)
class LoadedTransformer:
    """``quantised``: weights that a host still has to dequantise (quantised.formats.set_values)."""

    module: Any
    spec: TransformerSpec
    path: Path
    quantised: Mapping[str, Value] = field(default_factory=dict)


def load_transformer(path: Path, variant: str = "auto") -> LoadedTransformer:
    """A SanaTransformer2DModel or SanaVideoTransformer3DModel in the dtype of the file, with memory-mapped weights.

    ``variant``: whether a SANA-Video is LongSANA (standard, long), which auto takes from its config or its name.
    """
    checkpoint, family, positions = _opened(path, variant)
    return _loaded(checkpoint, family, positions)


def write_quantised_transformer(path: Path, output: Path, wanted: str, written: Callable[[StoredWeight], None]) -> None:
    """The transformer at ``path`` in a quantised format, as a file ``output`` with its config beside it.

    ``wanted``: a key of quantised.packing.PACKINGS. UnusableFile before anything is written if it is no transformer.
    """
    checkpoint, family, positions = _opened(path)
    module = _loaded(checkpoint, family, positions).module
    config = {key: value for key, value in module.config.items() if not key.startswith("_")}
    del module  # and with it the mapping of all its weights
    write_quantised(checkpoint, output, wanted, written)
    text = json.dumps({"_class_name": family.config_class or family.module, **config}, indent=2) + "\n"
    with written_whole(output.with_suffix(".json")) as part:
        part.write_text(text, encoding="utf-8")


def _opened(path: Path, variant: str = "auto") -> tuple[Checkpoint, Family, dict]:
    """A transformer's checkpoint in diffusers' naming, and what its config says of position tables."""
    checkpoint = open_checkpoint(path)
    found = require_kind(checkpoint, TRANSFORMERS, HINT)
    family = FAMILIES[of_variant(found, checkpoint.path, checkpoint.config, variant).kind.key]
    checkpoint = checkpoint.without_prefix(PREFIX).without_prefix(TRAINING_PREFIX)
    positions = {} if family.video else position_config(checkpoint)
    return to_diffusers(checkpoint, found), family, positions


def _loaded(checkpoint: Checkpoint, family: Family, positions: dict) -> LoadedTransformer:
    config_of = video_config_from_shapes if family.video else config_from_shapes

    import diffusers

    own = checkpoint.config_with("num_layers")
    if own is not None:
        check_config(own, checkpoint, family.video)
    make = getattr(diffusers, family.module)
    module = build_from_config(make, checkpoint, own, lambda: {**config_of(checkpoint), **positions})
    quantised = load_strictly(module, checkpoint)
    spec = spec_of(module.config, family)
    spec = replace(spec, clips=spec.float16 and stored_dtype(module) == torch.float16)
    if family.block_causal:
        spec = replace(spec, fingerprint=_fingerprint(module))
    return LoadedTransformer(module, spec, checkpoint.path, quantised)


def _fingerprint(module) -> str:
    """Tells models of one size apart, in whatever dtype they are stored."""
    table = module.scale_shift_table.detach().to(torch.bfloat16)
    return hashlib.sha256(table.float().numpy().tobytes()).hexdigest()[:16]


def check_config(config: Mapping, checkpoint: Checkpoint, video: bool = False) -> None:
    """UnusableFile where a config.json disagrees with the weights' shapes, before anything of its size is made."""
    key, dims = ("patch_embedding.weight", 5) if video else ("patch_embed.proj.weight", 4)
    width = checkpoint.shape(key, dims)[0]
    heads, head = config.get("num_attention_heads"), config.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(head, int) and heads * head != width:
        raise UnusableFile(
            f"{checkpoint.config_file} says num_attention_heads is {heads} and attention_head_dim {head}, and the "
            f"weights are {width} wide: it belongs to another model"
        )
    side = config.get("sample_size")
    if side is not None and (not isinstance(side, int) or not 1 <= side <= LARGEST_SAMPLE_SIZE):
        raise UnusableFile(
            f"{checkpoint.config_file} says a sample_size of {str(side)[:40]}; 1 to {LARGEST_SAMPLE_SIZE} is supported"
        )


def spec_of(config, family: Family) -> TransformerSpec:
    """The TransformerSpec for the config of a diffusers module."""
    patch = tuple(config.patch_size) if family.video else (1, config.patch_size, config.patch_size)
    large = getattr(config, "sample_size", None) == LARGEST_SAMPLE_SIZE
    embedded = getattr(config, "guidance_embeds", False)
    return TransformerSpec(
        family=family,
        latent_channels=config.in_channels,
        caption_channels=config.caption_channels,
        width=config.num_attention_heads * config.attention_head_dim,
        patch=patch,
        guidance_scale=config.guidance_embeds_scale if embedded and not family.video else None,
        flow_shift=family.large_flow_shift if large else family.flow_shift,
        time_scale=1.0 if family.uses_angles or family.video else getattr(config, "timestep_scale", 1.0),
        float16=not (family.uses_angles or family.video) and config.qk_norm is None,
    )


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a transformer or ControlNet without one, from its tensors' shapes.

    Head sizes are the published ones (self-attention 32; cross-attention the first of 112, 72 and 32
    that divides the width): a model with others needs its config.json next to it.
    """
    width, channels, patch, _ = checkpoint.shape("patch_embed.proj.weight", 4)
    cross_width, _ = checkpoint.shape("transformer_blocks.0.attn2.to_q.weight", 2)
    cross_head = next((d for d in CROSS_HEAD_DIMS if cross_width % d == 0), None)
    if width % SELF_HEAD_DIM or cross_head is None:
        raise _unknown_heads(checkpoint, width)
    out = checkpoint.shape("proj_out.weight", 2)[0] // patch**2 if "proj_out.weight" in checkpoint else channels
    return {
        **_common_config(checkpoint, width),
        "in_channels": channels,
        "out_channels": out,
        "patch_size": patch,
        "num_attention_heads": width // SELF_HEAD_DIM,
        "attention_head_dim": SELF_HEAD_DIM,
        "num_cross_attention_heads": cross_width // cross_head,
        "cross_attention_head_dim": cross_head,
        "guidance_embeds": "time_embed.guidance_embedder.linear_1.weight" in checkpoint,
    }


def video_config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a SANA-Video transformer without one, from its tensors' shapes.

    The head size is the first of the published ones, 112 and 32, that divides the width.
    """
    width, channels, *patch = checkpoint.shape("patch_embedding.weight", 5)
    cross_width, _ = checkpoint.shape("transformer_blocks.0.attn2.to_q.weight", 2)
    head = next((d for d in VIDEO_HEAD_DIMS if width % d == 0 and cross_width % d == 0), None)
    if head is None:
        raise _unknown_heads(checkpoint, width)
    return {
        **_common_config(checkpoint, width),
        "in_channels": channels,
        "out_channels": checkpoint.shape("proj_out.weight", 2)[0] // math.prod(patch),
        "patch_size": patch,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_cross_attention_heads": cross_width // head,
        "cross_attention_head_dim": head,
        "guidance_embeds": False,
        "sample_size": 30 if patch[1] == 2 else 22,
    }


def _common_config(checkpoint: Checkpoint, width: int) -> dict:
    """The entries that are read from shapes in the same way for every SANA transformer."""
    hidden = checkpoint.shape("transformer_blocks.0.ff.conv_point.weight", 4)[1]
    normed = "transformer_blocks.0.attn1.norm_q.weight" in checkpoint
    return {
        "num_layers": len({key.split(".")[1] for key in checkpoint if key.startswith("transformer_blocks.")}),
        "cross_attention_dim": checkpoint.shape("transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "caption_channels": checkpoint.shape("caption_projection.linear_1.weight", 2)[1],
        "mlp_ratio": _mlp_ratio(hidden, width),
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in checkpoint,
        "qk_norm": "rms_norm_across_heads" if normed else None,
    }


def _unknown_heads(checkpoint: Checkpoint, width: int) -> UnusableFile:
    return UnusableFile(
        f"{checkpoint.path}: a width of {width} has no published head size; put its config.json beside it"
    )


def _mlp_ratio(hidden: int, width: int) -> float:
    """A ratio whose product with ``width`` rounds down to ``hidden``, as in diffusers."""
    return hidden / width if int(hidden / width * width) == hidden else (hidden + 0.5) / width
