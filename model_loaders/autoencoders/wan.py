"""The Wan 2.1 VAE of SANA-Video at 480p: tensors in diffusers' naming to an AutoencoderKLWan."""

from __future__ import annotations

import re

from ...networks.latent_spaces import WAN, VaeSpec
from ..files.build import build_from_config, load_strictly
from ..files.checkpoint import Checkpoint, UnusableFile, Value

GEOMETRY = {"patch_size": None, "scale_factor_spatial": WAN.cell, "scale_factor_temporal": WAN.frames}
"""What a config may also say: Wan 2.2's VAE has other numbers."""


def build(checkpoint: Checkpoint) -> tuple[object, VaeSpec, dict[str, Value]]:
    """The module with memory-mapped weights, its spec, and the values of quantised weights."""
    from diffusers import AutoencoderKLWan

    own = checkpoint.config_with("z_dim")
    module = build_from_config(AutoencoderKLWan, checkpoint, own, lambda: config_from_shapes(checkpoint))
    quantised = load_strictly(module, checkpoint)
    config = module.config
    if config.z_dim != WAN.channels or config.is_residual:
        raise UnusableFile(
            f"{checkpoint.path} is a Wan VAE with {config.z_dim} channels; SANA-Video uses that of Wan 2.1 "
            f"({WAN.channels})"
        )
    for key, value in GEOMETRY.items():
        if config.get(key, value) != value:
            raise UnusableFile(
                f"{checkpoint.config_file} says {key} is {config[key]}, and the Wan 2.1 VAE of SANA-Video has {value}"
            )
    mean, std = config.latents_mean, config.latents_std
    if len(mean) != WAN.channels or len(std) != WAN.channels or not min(std) > 0:
        raise UnusableFile(
            f"{checkpoint.config_file} does not give latents_mean, and latents_std above 0, for 16 channels"
        )
    gain = tuple(own / common for own, common in zip(std, WAN.std))
    offset = tuple(own - common * g for own, common, g in zip(mean, WAN.mean, gain))
    return module, VaeSpec(WAN, config.z_dim, WAN.cell, WAN.frames, gain, offset), quantised


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a Wan VAE without one, from its tensors' shapes (diffusers' names)."""
    stages: list[int] = []
    temporal: list[bool] = []
    blocks = sorted({int(m[1]) for key in checkpoint if (m := re.match(r"encoder\.down_blocks\.(\d{1,4})\.", key))})
    for number in blocks:
        block = f"encoder.down_blocks.{number}."
        if f"{block}resample.1.weight" in checkpoint:
            temporal.append(f"{block}time_conv.weight" in checkpoint)
        elif len(stages) == len(temporal):
            stages.append(checkpoint.shape(f"{block}conv2.weight", 5)[0])
    base = checkpoint.shape("encoder.conv_in.weight", 5)[0]
    if not stages:
        raise UnusableFile(f"{checkpoint.path}: it has no encoder.down_blocks of a Wan VAE; put its config beside it")
    return {
        "base_dim": base,
        "decoder_base_dim": checkpoint.shape("decoder.conv_out.weight", 5)[1],
        "z_dim": checkpoint.shape("post_quant_conv.weight", 5)[0],
        "dim_mult": [width // base for width in stages],
        "num_res_blocks": (len(blocks) - len(temporal)) // len(stages),
        "temperal_downsample": temporal,
    }
