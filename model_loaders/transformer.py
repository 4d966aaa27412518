"""SANA's image transformers: a folder or one safetensors file in diffusers' naming, to a module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoints import Checkpoint, UnusableFile, build_from_config, load_strictly, open_checkpoint, require_kind

KINDS = ("SANA-Sprint transformer", "SANA transformer")
HINT = "Give SanaLoadTransformer a SANA transformer in diffusers' naming (models/diffusion_models)."

DEFAULT_GUIDANCE = 4.5
"""SanaSprintPipeline's guidance_scale, for conditioning that says none."""

SELF_HEAD_DIM = 32
CROSS_HEAD_DIMS = (112, 72, 32)
"""Head sizes of published models, largest first: shapes do not show how a width divides into heads."""


@dataclass(frozen=True)
class TransformerSpec:
    """What a host needs to know of a transformer. ``family``: "sprint" or "image"."""

    family: str
    latent_channels: int
    caption_channels: int
    width: int
    layers: int
    patch: int
    guidance_scale: float | None
    spatial_ratio: int = 32


@dataclass(frozen=True)
class LoadedTransformer:
    module: object
    spec: TransformerSpec
    path: Path


def load_transformer(path: Path) -> LoadedTransformer:
    """A SanaTransformer2DModel with the file's own dtype, its weights mapped from the file."""
    checkpoint = open_checkpoint(path)
    kind = require_kind(checkpoint, KINDS, HINT)
    config = checkpoint.config if checkpoint.config and "num_layers" in checkpoint.config else None
    config = config or config_from_shapes(checkpoint)

    from diffusers import SanaTransformer2DModel

    module = build_from_config(SanaTransformer2DModel, config, checkpoint.path)
    load_strictly(module, checkpoint)
    return LoadedTransformer(module, spec_of(module.config, kind), checkpoint.path)


def spec_of(config, kind: str) -> TransformerSpec:
    return TransformerSpec(
        family="sprint" if kind == KINDS[0] else "image",
        latent_channels=config.in_channels,
        caption_channels=config.caption_channels,
        width=config.num_attention_heads * config.attention_head_dim,
        layers=config.num_layers,
        patch=config.patch_size,
        guidance_scale=config.guidance_embeds_scale if config.guidance_embeds else None,
    )


def require_sprint(loaded: LoadedTransformer) -> None:
    """ValueError for a SANA model that no sampler of ours can sample yet."""
    if loaded.spec.family != "sprint":
        raise ValueError(f"{loaded.path} is a SANA model that is not SANA-Sprint; only SANA-Sprint is sampled yet")


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a transformer that came without one, read off its tensors' shapes.

    Head sizes are the published ones (self-attention 32; cross-attention 112, else 72 or 32,
    whichever divides the width): a model with others needs its config.json beside it.
    """
    shapes = checkpoint.shapes
    width, channels, patch, _ = _shape(checkpoint, "patch_embed.proj.weight", 4)
    cross_width, _ = _shape(checkpoint, "transformer_blocks.0.attn2.to_q.weight", 2)
    hidden = _shape(checkpoint, "transformer_blocks.0.ff.conv_point.weight", 4)[1]
    cross_head = next((d for d in CROSS_HEAD_DIMS if cross_width % d == 0), None)
    if width % SELF_HEAD_DIM or cross_head is None:
        raise UnusableFile(
            f"{checkpoint.path}: a width of {width} has no published head size; put its config.json beside it"
        )
    blocks = {key.split(".")[1] for key in shapes if key.startswith("transformer_blocks.")}
    ratio = hidden / width
    return {
        "in_channels": channels,
        "out_channels": _shape(checkpoint, "proj_out.weight", 2)[0] // patch**2,
        "patch_size": patch,
        "num_attention_heads": width // SELF_HEAD_DIM,
        "attention_head_dim": SELF_HEAD_DIM,
        "num_layers": len(blocks),
        "num_cross_attention_heads": cross_width // cross_head,
        "cross_attention_head_dim": cross_head,
        "cross_attention_dim": _shape(checkpoint, "transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "caption_channels": _shape(checkpoint, "caption_projection.linear_1.weight", 2)[1],
        "mlp_ratio": ratio if int(ratio * width) == hidden else (hidden + 0.5) / width,
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
        "guidance_embeds": "time_embed.guidance_embedder.linear_1.weight" in shapes,
        "qk_norm": "rms_norm_across_heads" if "transformer_blocks.0.attn1.norm_q.weight" in shapes else None,
    }


def _shape(checkpoint: Checkpoint, key: str, dims: int) -> tuple[int, ...]:
    shape = checkpoint.shapes.get(key)
    if shape is None or len(shape) != dims:
        found = "is missing" if shape is None else f"has the shape {list(shape)}"
        raise UnusableFile(f"{checkpoint.path}: {key} {found}; a SANA transformer has {dims} dimensions there")
    return shape


def network_inputs(spec: TransformerSpec, x, time, context, guidance=None) -> dict:
    """SanaTransformer2DModel's keyword arguments for one call.

    ``x`` [B, C, H, W] scaled input, ``time`` [B] network time, ``context`` [1 or B, L,
    caption_channels], ``guidance`` [1] or [B], unscaled (used by SANA-Sprint alone).
    """
    if spec.guidance_scale is not None:
        guidance = guidance.expand(x.shape[0]) * spec.guidance_scale
    return {
        "hidden_states": x,
        "encoder_hidden_states": context.expand(x.shape[0], -1, -1),
        "timestep": time,
        "guidance": guidance if spec.guidance_scale is not None else None,
        "return_dict": False,
    }
