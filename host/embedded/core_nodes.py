"""The few ComfyUI core nodes that our workflows use, for the host without ComfyUI."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch

from . import runtime


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", {})}, "hidden": {"folders": "FOLDERS"}}

    def load(self, image, folders):
        from PIL import Image, ImageOps

        path = _inside(folders.input, image)
        if not path.is_file():
            raise FileNotFoundError(f"no picture {image!r} in {folders.input}")
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            alpha = picture.getchannel("A") if "A" in picture.getbands() else None
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)
        mask = torch.zeros(64, 64) if alpha is None else 1.0 - torch.from_numpy(np.asarray(alpha, np.float32) / 255.0)
        return pixels[None], mask[None]


class SaveImage:
    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"folders": "FOLDERS", "prompt": "PROMPT"},
        }

    def save(self, images, folders, prompt, filename_prefix="ComfyUI"):
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        stem = _inside(folders.output, filename_prefix)
        stem.parent.mkdir(parents=True, exist_ok=True)
        information = PngInfo()
        information.add_text("prompt", json.dumps(prompt))
        number, saved = _next_number(stem), []
        for offset, picture in enumerate(images):
            path = stem.with_name(f"{stem.name}_{number + offset:05}_.png")
            pixels = (picture.cpu().numpy() * 255.0).clip(0, 255).astype(np.uint8)
            half_written = path.with_suffix(".png.part")
            Image.fromarray(pixels).save(half_written, format="PNG", pnginfo=information, compress_level=4)
            half_written.replace(path)
            saved.append(str(path))
        return {"ui": {"images": saved}, "result": ()}


class PreviewImage(SaveImage):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE", {})}, "hidden": {"folders": "FOLDERS", "prompt": "PROMPT"}}

    def save(self, images, folders, prompt):
        return {"ui": {"images": []}, "result": ()}


class VAEDecode:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT", {}), "vae": ("VAE", {})}}

    def decode(self, samples, vae):
        return (vae.decode(samples["samples"]),)


class VAEEncode:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"pixels": ("IMAGE", {}), "vae": ("VAE", {})}}

    def encode(self, pixels, vae):
        return ({"samples": vae.encode(pixels)},)


class CLIPTextEncode:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {}), "clip": ("CLIP", {})}}

    def encode(self, text, clip: runtime.Clip):
        return (clip.condition(text),)


CORE_NODES = {cls.__name__: cls for cls in (LoadImage, SaveImage, PreviewImage, VAEDecode, VAEEncode, CLIPTextEncode)}


def _inside(folder: Path, name: str) -> Path:
    """``name`` below ``folder``; ValueError where it would lead out of it."""
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{name!r} leads out of {folder}; give a name inside it")
    return path


def _next_number(stem: Path) -> int:
    numbers = [
        int(m[1])
        for file in stem.parent.iterdir()
        if (m := re.fullmatch(rf"{re.escape(stem.name)}_(\d+)_?\.png", file.name))
    ]
    return max(numbers, default=0) + 1
