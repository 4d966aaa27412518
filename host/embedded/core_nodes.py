"""The few ComfyUI core nodes that our workflows use, for the host without ComfyUI; they behave as 0.33's do."""

from __future__ import annotations

import random
import string
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from ...media import writer
from ...media.prefixes import check_folder, check_prefix
from ...networks.prompts import Prompt
from . import control, runtime
from .images import read_images

BATCH_NUMBER = "%batch_num%"
CHANNELS = ("red", "green", "blue")


class LoadImage:
    DISPLAY_NAME = "Load Image"
    RETURN_TYPES: tuple[str, ...] = ("IMAGE", "MASK")
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

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix=None, folders=None):
        """True, or what is wrong with the prefix and, where the folders are given, with the output folder."""
        if filename_prefix is None:
            return True
        return _message(check_prefix, filename_prefix, folders and folders.output)

    def save(self, images, folders, prompt, filename_prefix="ComfyUI"):
        check_prefix(filename_prefix, folders.output)
        saved = _saved(images, folders, folders.output, filename_prefix, prompt)
        return {"ui": {"images": saved}, "result": (images,)}


class PreviewImage(SaveImage):
    DISPLAY_NAME = "Preview Image"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE", {})}, "hidden": {"folders": "FOLDERS", "prompt": "PROMPT"}}

    @classmethod
    def VALIDATE_INPUTS(cls, folders=None):
        return True if folders is None else _message(check_folder, folders.temp)

    def save(self, images, folders, prompt):
        prefix = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))
        return {"ui": {"previews": _saved(images, folders, folders.temp, prefix, prompt)}, "result": (images,)}


def _message(check, *given):
    """True, or what a check says."""
    try:
        check(*given)
    except (OSError, ValueError) as error:
        return str(error)
    return True


def _saved(images, folders, folder, prefix: str, prompt) -> list[str]:
    """Write images below a folder as ComfyUI does, cut to bytes and not rounded; returns their paths.

    ``%batch_num%`` in the prefix is each image's number in the batch.
    """
    target = folders.save_target(prefix, images.shape[2], images.shape[1], folder)
    arrays = [(image.cpu().numpy() * 255.0).clip(0, 255).astype(np.uint8) for image in images]
    if BATCH_NUMBER not in target.name:
        groups = [(target, arrays)]
    else:
        names = [target.name.replace(BATCH_NUMBER, str(i)) for i in range(len(arrays))]
        groups = [(replace(target, name=name, number=target.number + i), [arrays[i]]) for i, name in enumerate(names)]
    tags = folders.tags(prompt)
    written = (writer.write_images(each.names(".png"), some, len(some), "png", tags) for each, some in groups)
    return [str(path) for paths in written for path in paths]


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

    @staticmethod
    def prompts(text, **_) -> list[Prompt]:
        return [Prompt(text)]

    def encode(self, text, clip: runtime.Clip):
        return (clip.conditions(self.prompts(text))[0],)


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


class SolidMask:
    DISPLAY_NAME = "Solid Mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        side = ("INT", {"default": 512, "min": 1, "max": 16384})
        value = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0})
        return {"required": {"value": value, "width": side, "height": side}}

    def make(self, value, width, height):
        return (torch.full((1, height, width), value),)


class MaskComposite:
    DISPLAY_NAME = "Mask Composite"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "combine"
    OPERATIONS = {
        "multiply": lambda below, above: below * above,
        "add": lambda below, above: below + above,
        "subtract": lambda below, above: below - above,
        "and": lambda below, above: (below.round().bool() & above.round().bool()).float(),
        "or": lambda below, above: (below.round().bool() | above.round().bool()).float(),
        "xor": lambda below, above: (below.round().bool() ^ above.round().bool()).float(),
    }

    @classmethod
    def INPUT_TYPES(cls):
        offset = ("INT", {"default": 0, "min": 0, "max": 16384})
        return {
            "required": {
                "destination": ("MASK", {}),
                "source": ("MASK", {}),
                "x": offset,
                "y": offset,
                "operation": (list(cls.OPERATIONS), {}),
            }
        }

    def combine(self, destination, source, x, y, operation):
        result = destination.reshape(-1, *destination.shape[-2:]).clone()
        under = result[:, y : y + source.shape[-2], x : x + source.shape[-1]]
        over = source.reshape(-1, *source.shape[-2:])[:, : under.shape[-2], : under.shape[-1]]
        under.copy_(self.OPERATIONS[operation](under, over))
        return (result.clamp(0.0, 1.0),)


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
        SolidMask,
        MaskComposite,
        SetLatentNoiseMask,
        ImageCompositeMasked,
        ControlNetApplyAdvanced,
    )
}
