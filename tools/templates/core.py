"""The core nodes in the templates, as ComfyUI 0.33 declares them; a test compares them with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CoreNode:
    """Title on the canvas, inputs in order (name to type), outputs, names of the outputs, and the widgets' defaults.

    ``after``: values that the editor saves behind an input's own, such as a button's.
    """

    title: str
    inputs: dict[str, str]
    outputs: list[str]
    names: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    after: dict[str, list] = field(default_factory=dict)


SCALE = {"upscale_method": "COMBO", "width": "INT", "height": "INT", "crop": "COMBO"}
OPERATION = {"x": "INT", "y": "INT", "operation": "COMBO"}
CONTROL = {"strength": "FLOAT", "start_percent": "FLOAT", "end_percent": "FLOAT"}
TILES = {"tile_size": "INT", "overlap": "INT", "temporal_size": "INT", "temporal_overlap": "INT"}
CACHE = {"reuse_threshold": "FLOAT", "start_percent": "FLOAT", "end_percent": "FLOAT", "verbose": "BOOLEAN"}

CORE = {
    "LoadImage": CoreNode(
        "Load Image", {"image": "COMBO"}, ["IMAGE", "MASK"], [], {"image": "example.png"}, {"image": ["image"]}
    ),
    "SaveImage": CoreNode(
        "Save Image", {"images": "IMAGE", "filename_prefix": "STRING"}, [], [], {"filename_prefix": "ComfyUI"}
    ),
    "PreviewImage": CoreNode("Preview Image", {"images": "IMAGE"}, []),
    "VAEEncode": CoreNode("VAE Encode", {"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"]),
    "VAEDecode": CoreNode("VAE Decode", {"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "VAEDecodeTiled": CoreNode(
        "VAE Decode (Tiled)",
        {"samples": "LATENT", "vae": "VAE", **TILES},
        ["IMAGE"],
        [],
        {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8},
    ),
    "ImageBatch": CoreNode("Batch Images", {"image1": "IMAGE", "image2": "IMAGE"}, ["IMAGE"]),
    "ImageScale": CoreNode(
        "Upscale Image",
        {"image": "IMAGE", **SCALE},
        ["IMAGE"],
        [],
        {"upscale_method": "lanczos", "width": 512, "height": 512, "crop": "center"},
    ),
    "SolidMask": CoreNode(
        "Solid Mask",
        {"value": "FLOAT", "width": "INT", "height": "INT"},
        ["MASK"],
        [],
        {"value": 1.0, "width": 512, "height": 512},
    ),
    "MaskComposite": CoreNode(
        "Mask Composite",
        {"destination": "MASK", "source": "MASK", **OPERATION},
        ["MASK"],
        [],
        {"x": 0, "y": 0, "operation": "add"},
    ),
    "SetLatentNoiseMask": CoreNode("Set Latent Noise Mask", {"samples": "LATENT", "mask": "MASK"}, ["LATENT"]),
    "ImageCompositeMasked": CoreNode(
        "Image Composite Masked",
        {"destination": "IMAGE", "source": "IMAGE", "x": "INT", "y": "INT", "resize_source": "BOOLEAN", "mask": "MASK"},
        ["IMAGE"],
        [],
        {"x": 0, "y": 0, "resize_source": False},
    ),
    "ControlNetApplyAdvanced": CoreNode(
        "Apply ControlNet",
        {
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "control_net": "CONTROL_NET",
            "image": "IMAGE",
            **CONTROL,
            "vae": "VAE",
        },
        ["CONDITIONING", "CONDITIONING"],
        ["positive", "negative"],
        {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    ),
    "EasyCache": CoreNode(
        "EasyCache",
        {"model": "MODEL", **CACHE},
        ["MODEL"],
        [],
        {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
    ),
    "TorchCompileModel": CoreNode(
        "TorchCompileModel", {"model": "MODEL", "backend": "COMBO"}, ["MODEL"], [], {"backend": "inductor"}
    ),
}
