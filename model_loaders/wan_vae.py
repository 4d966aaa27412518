"""The Wan 2.1 VAE of SANA-Video at 480p: diffusers' naming or Wan's own (ComfyUI's file), to an AutoencoderKLWan."""

from __future__ import annotations

import re

from .checkpoints import Checkpoint, UnusableFile, build_from_config, load_strictly

MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
"""Mean and standard deviation of the published Wan 2.1 latents (AutoencoderKLWan's defaults).

ComfyUI's LATENT of 16 channels is not normalised: its models do that, with these numbers. Latents of a
VAE with others are brought to them, so that one transformer works with the core VAE and with ours.
"""

RESIDUAL = {"0.gamma": "norm1.gamma", "2.": "conv1.", "3.gamma": "norm2.gamma", "6.": "conv2."}
TOP = {
    "encoder.conv1.": "encoder.conv_in.",
    "decoder.conv1.": "decoder.conv_in.",
    "encoder.head.0.": "encoder.norm_out.",
    "decoder.head.0.": "decoder.norm_out.",
    "encoder.head.2.": "encoder.conv_out.",
    "decoder.head.2.": "decoder.conv_out.",
    "conv1.": "quant_conv.",
    "conv2.": "post_quant_conv.",
}


def build(checkpoint: Checkpoint) -> tuple[object, dict]:
    """The module, its weights mapped, and the fields of its VaeSpec."""
    config = checkpoint.config_with("z_dim")
    config = config or config_from_shapes(checkpoint)

    from diffusers import AutoencoderKLWan

    module = build_from_config(AutoencoderKLWan, config, checkpoint.path)
    load_strictly(module, checkpoint)
    if module.config.z_dim != len(MEAN) or module.config.is_residual:
        raise UnusableFile(
            f"{checkpoint.path} is a Wan VAE of {module.config.z_dim} channels; SANA-Video uses that of Wan 2.1 (16)"
        )
    mean, std = module.config.latents_mean, module.config.latents_std
    gain = tuple(own / common for own, common in zip(std, STD))
    fields = {
        "family": "wan",
        "latent_channels": module.config.z_dim,
        "spatial_ratio": 8,
        "temporal_ratio": 4,
        "gain": gain,
        "offset": tuple(own - common * g for own, common, g in zip(mean, MEAN, gain)),
    }
    return module, fields


def build_from_original(checkpoint: Checkpoint) -> tuple[object, dict]:
    """The same from Wan's own names: ComfyUI's wan_2.1_vae.safetensors."""
    resnets = _resnets_per_stage(checkpoint)
    rows = [(_diffusers_name(key, resnets, checkpoint), (key, 0, 1)) for key in checkpoint]
    return build(checkpoint.renamed(checkpoint.table(rows)))


def _resnets_per_stage(checkpoint: Checkpoint) -> int:
    """How many blocks come before the decoder's first upsampling."""
    places = [int(m[1]) for key in checkpoint if (m := re.match(r"decoder\.upsamples\.(\d+)\.resample\.", key))]
    if not places:
        raise UnusableFile(f"{checkpoint.path}: a Wan VAE's decoder has a key such as decoder.upsamples.3.resample.1")
    return min(places)


def _diffusers_name(key: str, resnets: int, checkpoint: Checkpoint) -> str:
    for old, new in TOP.items():
        if key.startswith(old):
            return new + key[len(old) :]
    if match := re.match(r"(encoder|decoder)\.middle\.(\d+)\.(.*)", key):
        half, place, rest = match[1], int(match[2]), match[3]
        block = "attentions.0." + rest if place == 1 else f"resnets.{place // 2}." + _in_block(rest)
        return f"{half}.mid_block.{block}"
    if match := re.match(r"encoder\.downsamples\.(\d+)\.(.*)", key):
        return f"encoder.down_blocks.{match[1]}.{_in_block(match[2])}"
    if match := re.match(r"decoder\.upsamples\.(\d+)\.(.*)", key):
        stage, place = divmod(int(match[1]), resnets + 1)
        block = "upsamplers.0." + match[2] if place == resnets else f"resnets.{place}." + _in_block(match[2])
        return f"decoder.up_blocks.{stage}.{block}"
    raise UnusableFile(f"{checkpoint.path}: the key {key} is none of a Wan 2.1 VAE's")


def _in_block(rest: str) -> str:
    """A name inside a residual or resampling block."""
    if rest.startswith("residual."):
        inner = rest.removeprefix("residual.")
        for old, new in RESIDUAL.items():
            if inner.startswith(old):
                return new + inner[len(old) :]
    return rest.replace("shortcut.", "conv_shortcut.")


def config_from_shapes(checkpoint: Checkpoint) -> dict:
    """The config of a Wan VAE that came without one, read off its tensors' shapes (diffusers' names)."""
    shapes = checkpoint.shapes
    stages: list[int] = []
    temporal: list[bool] = []
    blocks = sorted({int(m[1]) for key in shapes if (m := re.match(r"encoder\.down_blocks\.(\d+)\.", key))})
    for n in blocks:
        block = f"encoder.down_blocks.{n}."
        if f"{block}resample.1.weight" in shapes:
            temporal.append(f"{block}time_conv.weight" in shapes)
        elif len(stages) == len(temporal):
            stages.append(shapes[f"{block}conv2.weight"][0])
    base = shapes["encoder.conv_in.weight"][0]
    if not stages:
        raise UnusableFile(f"{checkpoint.path}: no encoder.down_blocks that a Wan VAE knows; put its config beside it")
    return {
        "base_dim": base,
        "decoder_base_dim": shapes["decoder.conv_out.weight"][1],
        "z_dim": shapes["post_quant_conv.weight"][0],
        "dim_mult": [width // base for width in stages],
        "num_res_blocks": (len(blocks) - len(temporal)) // len(stages),
        "temperal_downsample": temporal,
    }
