"""The few ComfyUI core nodes that our workflows use, for the host without ComfyUI."""

from __future__ import annotations

import json

import numpy as np
import torch

from . import runtime
from .folders import inside


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", {})}, "hidden": {"folders": "FOLDERS"}}

    def load(self, image, folders):
        from PIL import Image, ImageOps

        path = inside(folders.input, image)
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

        target = folders.save_target(filename_prefix)
        information = PngInfo()
        information.add_text("prompt", json.dumps(prompt))
        saved = []
        for offset, picture in enumerate(images):
            path = target.path(".png", offset)
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
        pictures = vae.decode(samples["samples"])
        return (pictures.flatten(0, -4),)


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


class ImageBatch:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image1": ("IMAGE", {}), "image2": ("IMAGE", {})}}

    def join(self, image1, image2):
        if image1.shape[1:3] != image2.shape[1:3]:
            sizes = [f"{i.shape[2]} x {i.shape[1]}" for i in (image1, image2)]
            raise ValueError(f"the pictures are {' and '.join(sizes)}; the embedded host joins pictures of one size")
        return (torch.cat([image1, image2]),)


CORE_NODES = {
    cls.__name__: cls for cls in (LoadImage, SaveImage, PreviewImage, VAEDecode, VAEEncode, CLIPTextEncode, ImageBatch)
}
