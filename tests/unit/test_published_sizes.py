"""Files of the published sizes without a config: every parameter of diffusers' module, in each naming.

The files are headers and holes: a safetensors header with the real names, shapes and dtype, and no data on the disk.
"""

from __future__ import annotations

import json
import math
import sys
from functools import cache
from pathlib import Path

import layouts
import pytest
import torch
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae

CROSS_06B = {"num_cross_attention_heads": 16, "cross_attention_head_dim": 72, "cross_attention_dim": 1152}
CROSS_16B = {"num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240}
SIZES = {
    "0.6B": {"num_attention_heads": 36, "attention_head_dim": 32, "num_layers": 28, **CROSS_06B},
    "1.6B": {"num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20, **CROSS_16B},
    "4.8B": {"num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 60, **CROSS_16B},
}
EVERY = {
    "in_channels": 32,
    "out_channels": 32,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
POSITIONS = {
    "512": {"sample_size": 16, "interpolation_scale": None},
    "1024": {"sample_size": 32, "interpolation_scale": None},
    "2K": {"sample_size": 64, "interpolation_scale": 1.0},
    "4K": {"sample_size": 128, "interpolation_scale": 2.0},
}
NORM = {"qk_norm": "rms_norm_across_heads"}
IMAGES = {
    **{f"SANA {size} {px}": {**EVERY, **SIZES[size], **POSITIONS[px]} for size in ("0.6B", "1.6B") for px in POSITIONS},
    **{f"SANA 1.5 {size}": {**EVERY, **SIZES[size], **POSITIONS["1024"], **NORM} for size in ("1.6B", "4.8B")},
    **{
        f"Sprint {size}": {**EVERY, **SIZES[size], **POSITIONS["1024"], **NORM, "guidance_embeds": True}
        for size in ("0.6B", "1.6B")
    },
}
"""After diffusers' convert_sana_to_diffusers.py: what its script writes into config.json."""

PARAMETERS = {"SANA 0.6B 512": 592e6, "SANA 1.6B 1024": 1604e6, "SANA 1.5 4.8B": 4722e6}
"""As FACTS, the papers and the model cards round them: 0.6 (593 M), 1.6 and 4.8 billion."""

VIDEO_2B = {
    "num_attention_heads": 20,
    "attention_head_dim": 112,
    "num_layers": 20,
    **CROSS_16B,
    "caption_channels": 2304,
    "mlp_ratio": 3.0,
    "attention_bias": False,
    **NORM,
}
VIDEOS = {
    "SANA-Video 480p": {**VIDEO_2B, "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2), "sample_size": 30},
    "SANA-Video 720p": {**VIDEO_2B, "in_channels": 128, "out_channels": 128, "patch_size": (1, 1, 1)}
    | {"sample_size": 22},
}
CHANNELS = (128, 256, 512, 512, 1024, 1024)
DC_AE = {
    "latent_channels": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": CHANNELS,
    "decoder_block_out_channels": CHANNELS,
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 0.41407,
}
LITE = {
    "decoder_block_types": ("ResBlock",) * 6,
    "decoder_qkv_multiscales": ((),) * 6,
    "decoder_layers_per_block": (0, 3, 5, 4, 4, 4),
    "upsample_block_type": "pixel_shuffle",
    "decoder_conv_act_fn": "silu",
}
VAES = {"DC-AE 1.0": DC_AE, "DC-AE 1.1": DC_AE, "DC-AE-Lite": {**DC_AE, **LITE}}
"""1.0 and 1.1 are one architecture, after convert_dcae_to_diffusers.py; Lite after NVlabs' dc_ae.py."""


@cache
def _empty(kind: str, config: tuple):
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, kind)(**dict(config))


def empty(kind: str, config: dict):
    return _empty(kind, tuple(config.items()))


def hollow(path, weights: dict, dtype="BF16", size: int = 2) -> None:
    """A safetensors file of those names and shapes that takes no room: the data is a hole."""
    header, end = {}, 0
    for name, value in weights.items():
        start, end = end, end + math.prod(value.shape) * size
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [start, end]}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        file.truncate(8 + len(said) + end)


def on_disk(path) -> int:
    return path.stat().st_blocks * 512


def fits(module, expected, config: dict, unseen: tuple[str, ...] = ()) -> None:
    """The module has the expected one's parameters, and says of itself what ``config`` says, but for ``unseen``."""
    shapes = {name: value.shape for name, value in expected.state_dict().items()}
    assert {name: value.shape for name, value in module.state_dict().items()} == shapes
    width = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
    for key in config.keys() - set(unseen):
        mine, theirs = module.config[key], config[key]
        if key == "mlp_ratio":
            mine, theirs = int(mine * width), int(theirs * width)
        if key == "downsample_block_type":
            mine, theirs = mine == "pixel_unshuffle", theirs == "pixel_unshuffle"
        assert (tuple(mine) if isinstance(mine, list) else mine) == theirs, key


ALIKE = tuple(name for name in IMAGES if not name.endswith(("1024", "2K", "4K")))
"""Those that differ in their weights alone: diffusers' naming holds no positions, so 512 stands for every size."""


@pytest.mark.parametrize("naming,name", [("diffusers", name) for name in ALIKE] + [("nvlabs", name) for name in IMAGES])
def test_images(tmp_path, name, naming):
    config, path = IMAGES[name], tmp_path / "model.safetensors"
    expected = empty("SanaTransformer2DModel", config)
    weights = expected.state_dict()
    if name in PARAMETERS:
        assert abs(sum(value.numel() for value in weights.values()) / PARAMETERS[name] - 1) < 0.02
    hollow(path, weights if naming == "diffusers" else layouts.nvlabs(weights, positions=config["sample_size"] ** 2))
    loaded = load_transformer(path)
    assert on_disk(path) < 1e6, "the test wrote data"
    fits(loaded.module, expected, config, ("sample_size", "interpolation_scale") if naming == "diffusers" else ())
    assert loaded.spec.family.key == ("sprint" if name.startswith("Sprint") else "image")
    assert loaded.spec.flow_shift == (6.0 if name.endswith("4K") and naming == "nvlabs" else 3.0)
    positions = loaded.module.patch_embed.pos_embed
    if naming == "nvlabs" and config["interpolation_scale"]:
        assert positions.shape[1] == config["sample_size"] ** 2 and not positions.is_meta
    else:
        assert positions is None


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("naming", ["diffusers", "nvlabs"])
def test_videos(tmp_path, name, naming):
    config, path = VIDEOS[name], tmp_path / "model.safetensors"
    expected = empty("SanaVideoTransformer3DModel", config)
    hollow(path, expected.state_dict() if naming == "diffusers" else layouts.nvlabs(expected.state_dict()))
    loaded = load_transformer(path)
    fits(loaded.module, expected, config)
    assert (loaded.spec.family.key, loaded.spec.flow_shift) == ("video", 8.0)


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_dc_ae(tmp_path, name, naming):
    config, path = VAES[name], tmp_path / "vae.safetensors"
    expected = empty("AutoencoderDC", config)
    weights = expected.state_dict()
    if naming == "original":
        weights = layouts.original_dc_ae(weights)
    hollow(path, weights, "F32", 4)
    loaded = load_vae(path)
    fits(loaded.module, expected, config)
    assert loaded.spec.gain == (1 / 0.41407,) and loaded.spec.spatial_ratio == 32


@pytest.mark.parametrize("size", ["0.6B", "1.6B"])
@pytest.mark.parametrize("naming", ["diffusers", "nvlabs"])
def test_controlnets(tmp_path, size, naming):
    config = {**SIZES[size], "num_layers": 7, "caption_channels": 2304, **POSITIONS["1024"]}
    expected = empty("SanaControlNetModel", config)
    weights, path = expected.state_dict(), tmp_path / "control.safetensors"
    if naming == "nvlabs":
        base = empty("SanaTransformer2DModel", {**EVERY, **SIZES[size]}).state_dict()
        weights = layouts.nvlabs_controlnet(weights, base)
        weights["pos_embed"] = torch.empty(1, 32**2, 1, device="meta")
    hollow(path, weights)
    loaded = load_controlnet(path)
    fits(loaded.module, expected, config)
    assert loaded.spec.layers == 7


@pytest.mark.parametrize("dtype,size", [("F32", 4), ("F8_E4M3", 1)])
def test_loading_reads_no_data(tmp_path, dtype, size):
    """The 4.8B model in each storage: loaded from a file of holes, and no page of them was touched."""
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from Linux's /proc")
    weights = empty("SanaTransformer2DModel", IMAGES["SANA 1.5 4.8B"]).state_dict()
    path = tmp_path / "model.safetensors"
    hollow(path, layouts.nvlabs(weights, positions=32**2), dtype, size)
    before = resident()
    module = load_transformer(path).module
    assert resident() - before < 0.02 * path.stat().st_size
    assert sum(p.numel() for p in module.parameters()) * size > 4e9


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
