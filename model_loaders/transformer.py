"""SANA's transformers: a folder or one file, in diffusers' naming or NVlabs', to a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoints import (
    PREFIX,
    Checkpoint,
    UnusableFile,
    build_from_config,
    describing,
    load_strictly,
    open_checkpoint,
    require_kind,
)
from .nvlabs_naming import position_config, to_diffusers
from .scaled_fp8 import take_scales, without_notes

SPRINT, IMAGE, VIDEO = "SANA-Sprint transformer", "SANA transformer", "SANA-Video transformer"
KINDS = (SPRINT, IMAGE, VIDEO, *(f"{kind} in NVlabs' naming" for kind in (SPRINT, IMAGE, VIDEO)))
HINT = "Give SanaLoadTransformer a SANA transformer (models/diffusion_models)."

DEFAULT_GUIDANCE = 4.5
"""SanaSprintPipeline's guidance_scale, for conditioning that says none."""

SELF_HEAD_DIM = 32
CROSS_HEAD_DIMS = (112, 72, 32)
VIDEO_HEAD_DIMS = (112, 32)
"""Head sizes of published models, largest first: shapes do not show how a width divides into heads."""

SHIFT, LARGE_SHIFT, VIDEO_SHIFT = 3.0, 6.0, 8.0
"""Flow shift of SANA, of SANA at 4096 pixels and of SANA-Video."""


@dataclass(frozen=True)
class TransformerSpec:
    """What a host needs to know of a transformer.

    ``family``: "sprint", "image" or "video". ``width``: channels of a token. ``patch``: latent cells
    per token in frames, rows and columns. ``flow_shift``: the model's own, where it is not Sprint.
    ``time_scale``: what the times of flow matching, 0 to 1000, are multiplied by.
    """

    family: str
    latent_channels: int
    caption_channels: int
    width: int
    patch: tuple[int, int, int]
    guidance_scale: float | None = None
    flow_shift: float = SHIFT
    time_scale: float = 1.0

    @property
    def name(self) -> str:
        return {"sprint": "SANA-Sprint", "image": "SANA", "video": "SANA-Video"}[self.family]


@dataclass(frozen=True)
class LoadedTransformer:
    """``scaled``: weights of a scaled fp8 file that a host has yet to give their true values (apply_scales)."""

    module: object
    spec: TransformerSpec
    path: Path
    scaled: Mapping[str, Callable] = field(default_factory=dict)


def load_transformer(path: Path) -> LoadedTransformer:
    """A SanaTransformer2DModel or SanaVideoTransformer3DModel with the file's own dtype, its weights mapped."""
    checkpoint = open_checkpoint(path)
    kind = require_kind(checkpoint, KINDS, HINT)
    with describing(checkpoint, kind):
        checkpoint = without_notes(_without_prefix(checkpoint))
        config = checkpoint.config_with("num_layers")
        positions = position_config(checkpoint)
        checkpoint, kind = to_diffusers(checkpoint, kind)
        checkpoint, scaled = take_scales(checkpoint)

        import diffusers

        if kind == VIDEO:
            config = config or video_config_from_shapes(checkpoint)
            module = build_from_config(diffusers.SanaVideoTransformer3DModel, config, checkpoint.path)
        else:
            config = config or {**config_from_shapes(checkpoint), **positions}
            module = build_from_config(diffusers.SanaTransformer2DModel, config, checkpoint.path)
        load_strictly(module, checkpoint)
        return LoadedTransformer(module, spec_of(module.config, kind), checkpoint.path, scaled)


def _without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """The same without ComfyUI's prefix; what does not have it keeps its name."""
    return checkpoint.renamed(checkpoint.table((key.removeprefix(PREFIX), (key, 0, 1)) for key in checkpoint))


def spec_of(config, kind: str) -> TransformerSpec:
    channels = {
        "latent_channels": config.in_channels,
        "caption_channels": config.caption_channels,
        "width": config.num_attention_heads * config.attention_head_dim,
    }
    if kind == VIDEO:
        return TransformerSpec("video", patch=tuple(config.patch_size), flow_shift=VIDEO_SHIFT, **channels)
    return TransformerSpec(
        family="sprint" if kind == SPRINT else "image",
        patch=(1, config.patch_size, config.patch_size),
        guidance_scale=config.guidance_embeds_scale if config.guidance_embeds else None,
        flow_shift=LARGE_SHIFT if config.sample_size == 128 else SHIFT,
        time_scale=1.0 if kind == SPRINT else getattr(config, "timestep_scale", 1.0),
        **channels,
    )


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a transformer or a ControlNet that came without one, read off its tensors' shapes.

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
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2 if "proj_out.weight" in shapes else channels,
        "patch_size": patch,
        "num_attention_heads": width // SELF_HEAD_DIM,
        "attention_head_dim": SELF_HEAD_DIM,
        "num_layers": _layers(checkpoint),
        "num_cross_attention_heads": cross_width // cross_head,
        "cross_attention_head_dim": cross_head,
        "cross_attention_dim": _shape(checkpoint, "transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "caption_channels": _shape(checkpoint, "caption_projection.linear_1.weight", 2)[1],
        "mlp_ratio": _mlp_ratio(hidden, width),
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
        "guidance_embeds": "time_embed.guidance_embedder.linear_1.weight" in shapes,
        "qk_norm": "rms_norm_across_heads" if "transformer_blocks.0.attn1.norm_q.weight" in shapes else None,
    }


def video_config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a SANA-Video transformer that came without one, read off its tensors' shapes.

    Heads have the published size, 112, else 32, whichever divides the width.
    """
    shapes = checkpoint.shapes
    width, channels, *patch = _shape(checkpoint, "patch_embedding.weight", 5)
    cross_width, _ = _shape(checkpoint, "transformer_blocks.0.attn2.to_q.weight", 2)
    hidden = _shape(checkpoint, "transformer_blocks.0.ff.conv_point.weight", 4)[1]
    head = next((d for d in VIDEO_HEAD_DIMS if width % d == 0 and cross_width % d == 0), None)
    if head is None:
        raise UnusableFile(
            f"{checkpoint.path}: a width of {width} has no published head size; put its config.json beside it"
        )
    return {
        "in_channels": channels,
        "out_channels": _shape(checkpoint, "proj_out.weight", 2)[0] // math.prod(patch),
        "patch_size": patch,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": _layers(checkpoint),
        "num_cross_attention_heads": cross_width // head,
        "cross_attention_head_dim": head,
        "cross_attention_dim": _shape(checkpoint, "transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "caption_channels": _shape(checkpoint, "caption_projection.linear_1.weight", 2)[1],
        "mlp_ratio": _mlp_ratio(hidden, width),
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
        "guidance_embeds": False,
        "qk_norm": "rms_norm_across_heads" if "transformer_blocks.0.attn1.norm_q.weight" in shapes else None,
        "sample_size": 30 if patch[1] == 2 else 22,
    }


def _layers(checkpoint: Checkpoint) -> int:
    return len({key.split(".")[1] for key in checkpoint if key.startswith("transformer_blocks.")})


def _mlp_ratio(hidden: int, width: int) -> float:
    """A ratio whose product with ``width`` rounds down to ``hidden``, as diffusers computes it."""
    return hidden / width if int(hidden / width * width) == hidden else (hidden + 0.5) / width


def _shape(checkpoint: Checkpoint, key: str, dims: int) -> tuple[int, ...]:
    shape = checkpoint.shapes.get(key)
    if shape is None or len(shape) != dims:
        found = "is missing" if shape is None else f"has the shape {list(shape)}"
        raise UnusableFile(f"{checkpoint.path}: {key} {found}; a SANA transformer has {dims} dimensions there")
    return shape


def network_inputs(spec: TransformerSpec, x, time, context, guidance=None, mask=None, control=None) -> dict:
    """The keyword arguments of diffusers' transformer for one call.

    ``x`` [B, C, H, W] or [B, C, F, H, W] scaled input, ``time`` [B] network time, ``context``
    [1 or B, L, caption_channels], ``guidance`` [1] or [B], unscaled (used by SANA-Sprint alone),
    ``mask`` broadcastable to ``x``: 0 where a video's latent is held (used by SANA-Video alone),
    ``control``: what a ControlNet adds after each block but the first, [B, tokens, width] each.
    """
    inputs = {
        "hidden_states": x,
        "encoder_hidden_states": context.expand(x.shape[0], -1, -1),
        "timestep": time * spec.time_scale,
        "return_dict": False,
    }
    if control:
        inputs["controlnet_block_samples"] = tuple(control)
        _check_control(spec, control)
    if spec.guidance_scale is not None:
        inputs["guidance"] = guidance.expand(x.shape[0]) * spec.guidance_scale
    if spec.family == "video" and mask is not None and bool((mask < 1).any()):
        inputs["timestep"] = token_times(spec, time, mask.expand(x.shape[0], -1, *x.shape[2:]))
    return inputs


def _check_control(spec: TransformerSpec, control) -> None:
    for part in control:
        if part.ndim != 3 or part.shape[-1] != spec.width:
            raise ValueError(
                f"this CONTROL_NET adds tensors of the shape {list(part.shape)}, and this model's tokens have "
                f"{spec.width} channels: load a ControlNet of the same size of SANA with SanaLoadControlNet"
            )


def velocity(spec: TransformerSpec, output):
    """What a transformer's output [B, C, ...] says of its input; a learned variance behind it is not used."""
    return output[0][:, : spec.latent_channels]


def token_times(spec: TransformerSpec, time, mask):
    """Each token's own time [B, 1, F, h, w], 0 where the latent is held (SanaImageToVideoPipeline)."""
    from torch.nn import functional

    free = functional.avg_pool3d(mask[:, :1].float(), spec.patch)
    return time.view(-1, 1, 1, 1, 1) * free
