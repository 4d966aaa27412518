"""DC-AE, SANA's image autoencoder: tensors in diffusers' naming to an AutoencoderDC."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...networks.latent_spaces import DC_AE, VaeSpec
from ..files.build import build_from_config, load_strictly
from ..files.checkpoint import Checkpoint, UnusableFile, Value

SANA_SCALE = 0.41407
"""scaling_factor of the published dc-ae-f32c32-sana autoencoders."""

MULTISCALE = "to_qkv_multiscale.0.proj_out.weight"


def build(checkpoint: Checkpoint) -> tuple[object, VaeSpec, dict[str, Value]]:
    """The module with memory-mapped weights, its spec, and the values of quantised weights."""
    from diffusers import AutoencoderDC

    own = checkpoint.config_with("latent_channels")
    module = build_from_config(AutoencoderDC, checkpoint, own, lambda: config_from_shapes(checkpoint))
    quantised = load_strictly(module, checkpoint)
    if not module.config.scaling_factor > 0:
        raise UnusableFile(
            f"{checkpoint.config_file} says a scaling_factor of {module.config.scaling_factor}; it is more than 0"
        )
    gain = (1 / module.config.scaling_factor,)
    spec = VaeSpec(DC_AE, module.config.latent_channels, module.spatial_compression_ratio, gain=gain)
    return module, spec, quantised


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a DC-AE without one, from its tensors' shapes.

    Activations, shortcuts and the scaling factor cannot be read from shapes: they are those of the published
    SANA autoencoders. Only DC-AE-Lite has a decoder without attention, which ends in SiLU.
    """
    encoder = _stages(checkpoint, "encoder.down_blocks", "encoder.conv_in.conv.weight")
    decoder = _stages(checkpoint, "decoder.up_blocks", "decoder.conv_out.conv.weight")
    light = all(stage.kind == "ResBlock" for stage in decoder)
    heads = [checkpoint.shape(key, 4)[1] for key in checkpoint if key.endswith(MULTISCALE)]
    first = "encoder.conv_in.weight" if "encoder.conv_in.weight" in checkpoint else "encoder.conv_in.conv.weight"
    return {
        "in_channels": checkpoint.shape(first, 4)[1],
        "latent_channels": checkpoint.shape("decoder.conv_in.weight", 4)[1],
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
    """The stages from the largest resolution to the smallest.

    With the key ``resampled`` the first stage has no blocks and no keys: the layer before or after it
    resamples. The channels of this stage are not used.
    """
    numbers = {int(m[1]) for k in checkpoint if (m := re.match(rf"{re.escape(prefix)}\.(\d{{1,3}})\.", k))}
    empty = int(resampled in checkpoint)
    if not numbers or sorted(numbers) != list(range(empty, max(numbers) + 1)):
        raise UnusableFile(
            f"{checkpoint.path}: the stages of {prefix} are {sorted(numbers)}, so a stage is missing: "
            "put its config.json beside it"
        )
    stages = [_stage(checkpoint, f"{prefix}.{n}") for n in sorted(numbers)]
    return [_Stage("ResBlock", 0, stages[0].channels // 2, (), None)] * empty + stages


def _stage(checkpoint: Checkpoint, prefix: str) -> _Stage:
    keys = [key[len(prefix) + 1 :] for key in checkpoint if key.startswith(f"{prefix}.")]
    residual = [key for key in keys if re.fullmatch(r"\d+\.conv1\.weight", key)]
    attention = [key for key in keys if re.fullmatch(r"\d+\.attn\.to_q\.weight", key)]
    resample = [key for key in keys if re.fullmatch(r"\d+\.conv\.weight", key)]
    blocks = attention or residual
    if not blocks:
        raise UnusableFile(f"{checkpoint.path}: {prefix} has no block of a DC-AE; put its config.json beside it")
    pattern = rf"{blocks[0].split('.')[0]}\.attn\.to_qkv_multiscale\.(\d{{1,3}})\.proj_in\.weight"
    kernels = {
        int(m[1]): checkpoint.shape(f"{prefix}.{key}", 4)[-1] for key in keys if (m := re.fullmatch(pattern, key))
    }
    return _Stage(
        kind="EfficientViTBlock" if attention else "ResBlock",
        layers=len(blocks),
        channels=checkpoint.shape(f"{prefix}.{blocks[0]}", 2 if attention else 4)[1],
        scales=tuple(kernels[i] for i in sorted(kernels)),
        resample=checkpoint.shape(f"{prefix}.{resample[0]}", 4)[0] if resample else None,
    )


def _resampling(stages: list[_Stage], names: tuple[str, str], larger_next: bool) -> str:
    """Which of two resamplers is used, from the output channels of its convolution.

    Down: a quarter of the next stage's channels for pixel_unshuffle, all of them for a strided convolution.
    Up: the stage's channels for interpolation, four times as many for pixel_shuffle.
    """
    plain = names[0] if not larger_next else names[1]
    other = names[1] if not larger_next else names[0]
    for stage, following in zip(stages, [*stages[1:], None]):
        if stage.resample is not None:
            target = following.channels if larger_next and following else stage.channels
            return plain if stage.resample == target else other
    return plain
