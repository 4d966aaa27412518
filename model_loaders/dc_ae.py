"""DC-AE, SANA's image autoencoder: tensors in diffusers' naming or NVlabs' to an AutoencoderDC."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .checkpoints import Checkpoint, UnusableFile, build_from_config, load_strictly
from .dc_ae_naming import to_diffusers

SANA_SCALE = 0.41407
"""scaling_factor of the published dc-ae-f32c32-sana autoencoders."""


def build(checkpoint: Checkpoint) -> tuple[object, dict]:
    """The module, its weights mapped, and the fields of its VaeSpec."""
    config = checkpoint.config_with("latent_channels")
    config = config or config_from_shapes(checkpoint)

    from diffusers import AutoencoderDC

    module = build_from_config(AutoencoderDC, config, checkpoint.path)
    load_strictly(module, checkpoint)
    fields = {
        "family": "dc-ae",
        "latent_channels": module.config.latent_channels,
        "spatial_ratio": module.spatial_compression_ratio,
        "gain": (1 / module.config.scaling_factor,),
    }
    return module, fields


def build_from_original(checkpoint: Checkpoint) -> tuple[object, dict]:
    """The same from the names of mit-han-lab and NVlabs."""
    return build(to_diffusers(checkpoint))


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a DC-AE that came without one, read off its tensors' shapes.

    Activations and shortcuts leave no shape: they are those of the published SANA autoencoders, of which
    DC-AE-Lite alone has a decoder without attention, and alone ends it in SiLU. So is the scaling factor.
    """
    shapes = checkpoint.shapes
    encoder = _stages(checkpoint, "encoder.down_blocks", "encoder.conv_in.conv.weight")
    decoder = _stages(checkpoint, "decoder.up_blocks", "decoder.conv_out.conv.weight")
    light = all(stage.kind == "ResBlock" for stage in decoder)
    heads = [s[1] for k, s in shapes.items() if k.endswith("to_qkv_multiscale.0.proj_out.weight")]
    first = "encoder.conv_in.weight" if "encoder.conv_in.weight" in shapes else "encoder.conv_in.conv.weight"
    return {
        "in_channels": shapes[first][1],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "attention_head_dim": heads[0] if heads else 32,
        "encoder_block_types": tuple(s.kind for s in encoder),
        "decoder_block_types": tuple(s.kind for s in decoder),
        "encoder_block_out_channels": tuple(s.channels for s in encoder),
        "decoder_block_out_channels": tuple(s.channels for s in decoder),
        "encoder_layers_per_block": tuple(s.layers for s in encoder),
        "decoder_layers_per_block": tuple(s.layers for s in decoder),
        "encoder_qkv_multiscales": tuple(s.scales for s in encoder),
        "decoder_qkv_multiscales": tuple(s.scales for s in decoder),
        "downsample_block_type": _resampling(encoder, ("pixel_unshuffle", "Conv"), larger_next=True),
        "upsample_block_type": _resampling(decoder, ("interpolate", "pixel_shuffle"), larger_next=False),
        "decoder_conv_act_fn": "silu" if light else "relu",
        "scaling_factor": SANA_SCALE,
    }


@dataclass(frozen=True)
class _Stage:
    kind: str
    layers: int
    channels: int
    scales: tuple[int, ...]
    resample: int | None
    """Output channels of the stage's down- or up-sampling convolution."""


def _stages(checkpoint: Checkpoint, prefix: str, resampled: str) -> list[_Stage]:
    """The stages from the largest picture to the smallest.

    The first has no blocks, and leaves no keys, where the key ``resampled`` is there: what comes before or
    after it resamples by itself then. Nothing uses its channels.
    """
    numbers = {int(m[1]) for k in checkpoint.shapes if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", k))}
    empty = int(resampled in checkpoint.shapes)
    if not numbers or sorted(numbers) != list(range(empty, max(numbers) + 1)):
        raise UnusableFile(
            f"{checkpoint.path}: the stages of {prefix} are {sorted(numbers)}, and one between is missing: "
            "put its config.json beside it"
        )
    stages = [_stage(checkpoint, f"{prefix}.{n}") for n in sorted(numbers)]
    return [_Stage("ResBlock", 0, stages[0].channels // 2, (), None)] * empty + stages


def _stage(checkpoint: Checkpoint, prefix: str) -> _Stage:
    shapes = {k[len(prefix) + 1 :]: s for k, s in checkpoint.shapes.items() if k.startswith(prefix + ".")}
    residual = [s for k, s in shapes.items() if re.fullmatch(r"\d+\.conv1\.weight", k)]
    attention = [s for k, s in shapes.items() if re.fullmatch(r"\d+\.attn\.to_q\.weight", k)]
    resample = [s for k, s in shapes.items() if re.fullmatch(r"\d+\.conv\.weight", k)]
    blocks = attention or residual
    if not blocks:
        raise UnusableFile(
            f"{checkpoint.path}: {prefix} has no block that a DC-AE knows; put its config.json beside it"
        )
    first = next(k.split(".")[0] for k in shapes if re.fullmatch(r"\d+\.(conv1|attn\.to_q)\.weight", k))
    kernels = {
        int(m[1]): s[-1]
        for k, s in shapes.items()
        if (m := re.fullmatch(rf"{first}\.attn\.to_qkv_multiscale\.(\d+)\.proj_in\.weight", k))
    }
    return _Stage(
        kind="EfficientViTBlock" if attention else "ResBlock",
        layers=len(blocks),
        channels=blocks[0][1],
        scales=tuple(kernels[i] for i in sorted(kernels)),
        resample=resample[0][0] if resample else None,
    )


def _resampling(stages: list[_Stage], names: tuple[str, str], larger_next: bool) -> str:
    """Which of two resamplers was used, from how many channels its convolution gives.

    Down: a quarter of the next stage's for pixel_unshuffle, all of them for a strided convolution.
    Up: all of the stage's own for interpolation, four times as many for pixel_shuffle.
    """
    plain = names[0] if not larger_next else names[1]
    other = names[1] if not larger_next else names[0]
    for stage, following in zip(stages, [*stages[1:], None]):
        if stage.resample is not None:
            target = following.channels if larger_next and following else stage.channels
            return plain if stage.resample == target else other
    return plain
