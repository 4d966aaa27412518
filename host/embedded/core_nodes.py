"""The few ComfyUI core nodes that our workflows use, for the host without ComfyUI; they behave as 0.33's do."""

from __future__ import annotations

import json
import random
import string
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from . import control, runtime
from .folders import Folders, expand_prefix, why_unwritable
from .images import read_images

CHANNELS = ("red", "green", "blue")


class LoadImage:
    DISPLAY_NAME = "Load Image"
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ([], {})}, "hidden": {"folders": "FOLDERS"}}

    @classmethod
    def VALIDATE_INPUTS(cls, image, folders):
        try:
            folders.input_file(image)
        except (FileNotFoundError, ValueError) as error:
            return f"image: {error}"
        return True

    def load(self, image, folders):
        return read_images(folders.input_file(image))


class SaveImage:
    DISPLAY_NAME = "Save Image"
    RETURN_TYPES = ("IMAGE",)
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

        target = folders.save_target(expand_prefix(filename_prefix, images.shape[2], images.shape[1]))
        information = PngInfo()
        if prompt is not None:
            information.add_text("prompt", json.dumps(prompt))
        saved = []
        for offset, picture in enumerate(images):
            named = replace(target, name=target.name.replace("%batch_num%", str(offset)))
            path = named.path(".png", offset)
            pixels = (picture.cpu().numpy() * 255.0).clip(0, 255).astype(np.uint8)
            half_written = path.with_suffix(".png.part")
            Image.fromarray(pixels).save(half_written, format="PNG", pnginfo=information, compress_level=4)
            half_written.replace(path)
            saved.append(str(path))
        return {"ui": {"images": saved}, "result": (images,)}


class PreviewImage(SaveImage):
    DISPLAY_NAME = "Preview Image"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE", {})}, "hidden": {"folders": "FOLDERS", "prompt": "PROMPT"}}

    @classmethod
    def VALIDATE_INPUTS(cls, folders):
        return why_unwritable(folders.temp) or True

    def save(self, images, folders: Folders, prompt):
        name = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))
        shown = super().save(images, replace(folders, output=folders.temp), prompt, name)
        return {**shown, "ui": {"previews": shown["ui"]["images"]}}


class VAEDecode:
    DISPLAY_NAME = "VAE Decode"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT", {}), "vae": ("VAE", {})}}

    def decode(self, samples, vae):
        images = vae.decode(samples["samples"])
        return (images.flatten(0, -4),)


class VAEEncode:
    DISPLAY_NAME = "VAE Encode"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"pixels": ("IMAGE", {}), "vae": ("VAE", {})}}

    def encode(self, pixels, vae):
        return ({"samples": vae.encode(pixels)},)


class CLIPTextEncode:
    DISPLAY_NAME = "CLIP Text Encode (Prompt)"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {}), "clip": ("CLIP", {})}}

    def encode(self, text, clip: runtime.Clip):
        return (clip.condition(text),)


class ImageBatch:
    DISPLAY_NAME = "Batch Images (DEPRECATED)"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image1": ("IMAGE", {}), "image2": ("IMAGE", {})}}

    def join(self, image1, image2):
        channels = max(image1.shape[-1], image2.shape[-1])
        image1, image2 = (_with_alpha(image) if image.shape[-1] < channels else image for image in (image1, image2))
        if image1.shape[1:] != image2.shape[1:]:
            image2 = _cover(image2, image1.shape[2], image1.shape[1])
        return (torch.cat([image1, image2]),)


def _with_alpha(images):
    return functional.pad(images, (0, 1), value=1.0)


def _cover(images, width, height):
    """The middle of images [B, H, W, C] in the shape asked for, resized (common_upscale with crop "center")."""
    rows, columns = images.shape[1:3]
    old, new = columns / rows, width / height
    left = round((columns - columns * (new / old)) / 2) if old > new else 0
    top = round((rows - rows * (old / new)) / 2) if old < new else 0
    middle = images[:, top : rows - top, left : columns - left].movedim(-1, 1)
    return functional.interpolate(middle, size=(height, width), mode="bilinear").movedim(1, -1)


class LoadImageMask(LoadImage):
    DISPLAY_NAME = "Load Image (as Mask)"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        channels = (["alpha", *CHANNELS], {})
        return {"required": {"image": ([], {}), "channel": channels}, "hidden": {"folders": "FOLDERS"}}

    def load(self, image, channel, folders):
        images, mask = super().load(image, folders)
        return (mask if channel == "alpha" else images[..., CHANNELS.index(channel)],)


class SetLatentNoiseMask:
    DISPLAY_NAME = "Set Latent Noise Mask"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT", {}), "mask": ("MASK", {})}}

    def set_mask(self, samples, mask):
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class ImageCompositeMasked:
    DISPLAY_NAME = "Image Composite Masked"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"

    @classmethod
    def INPUT_TYPES(cls):
        offset = ("INT", {"default": 0, "min": 0, "max": 16384})
        return {
            "required": {
                "destination": ("IMAGE", {}),
                "source": ("IMAGE", {}),
                "x": offset,
                "y": offset,
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK", {})},
        }

    def composite(self, destination, source, x, y, resize_source, mask=None):
        if destination.shape[-1] > source.shape[-1]:
            source = _with_alpha(source)
        canvas = destination.movedim(-1, 1).clone()
        layer = source[..., : destination.shape[-1]].movedim(-1, 1)
        layer = _repeated(_resized(layer, canvas.shape[-2:]) if resize_source else layer, len(canvas))
        return (_lay(canvas, layer, x, y, mask).movedim(1, -1),)


def _lay(canvas, layer, x: int, y: int, mask):
    """``layer`` over ``canvas``, both [B, C, H, W], with its corner at x, y; what reaches beyond is cut off."""
    rows, columns = layer.shape[-2:]
    left, top = max(-columns, min(x, canvas.shape[-1])), max(-rows, min(y, canvas.shape[-2]))
    seen = canvas.shape[-2] - top + min(0, top), canvas.shape[-1] - left + min(0, left)
    kept = torch.ones_like(layer) if mask is None else _mask_of(mask, layer)
    kept, layer = kept[..., : seen[0], : seen[1]], layer[..., : seen[0], : seen[1]]
    area = (..., slice(top, top + rows), slice(left, left + columns))
    canvas[area] = kept * layer + (torch.ones_like(kept) - kept) * canvas[area]
    return canvas


def _mask_of(mask, layer):
    return _repeated(_resized(mask.reshape(-1, 1, *mask.shape[-2:]), layer.shape[-2:]), len(layer))


def _resized(images, size):
    return functional.interpolate(images, size=tuple(size), mode="bilinear")


def _repeated(images, count: int):
    """The first ``count`` of a batch, begun again where it ends."""
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


class ControlNetApplyAdvanced:
    DISPLAY_NAME = "Apply ControlNet"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        part = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {
            "required": {
                "positive": ("CONDITIONING", {}),
                "negative": ("CONDITIONING", {}),
                "control_net": ("CONTROL_NET", {}),
                "image": ("IMAGE", {}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
                "start_percent": ("FLOAT", {"default": 0.0, **part}),
                "end_percent": ("FLOAT", {"default": 1.0, **part}),
            },
            "optional": {"vae": ("VAE", {})},
        }

    def apply(self, positive, negative, control_net, image, strength, start_percent, end_percent, vae=None):
        if strength == 0:
            return positive, negative
        applied = control.AppliedControl(control_net, image, vae, strength, start_percent, end_percent)
        return tuple(control.apply([positive, negative], applied))


CORE_NODES = {
    cls.__name__: cls
    for cls in (
        LoadImage,
        LoadImageMask,
        SaveImage,
        PreviewImage,
        VAEDecode,
        VAEEncode,
        CLIPTextEncode,
        ImageBatch,
        SetLatentNoiseMask,
        ImageCompositeMasked,
        ControlNetApplyAdvanced,
    )
}
