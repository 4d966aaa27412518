"""The few ComfyUI core nodes that our workflows use, for the host without ComfyUI."""

from __future__ import annotations

import random
import string
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from ...media import writer
from ...media.prefixes import check_folder, check_prefix
from . import control, runtime
from .folders import inside

BATCH_NUMBER = "%batch_num%"
CHANNELS = ("alpha", "red", "green", "blue")


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


class LoadImageMask(LoadImage):
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        channels = (list(CHANNELS), {})
        return {"required": {"image": ("STRING", {}), "channel": channels}, "hidden": {"folders": "FOLDERS"}}

    def load(self, image, channel, folders):
        pixels, mask = super().load(image, folders)
        return (mask if channel == "alpha" else pixels[..., CHANNELS.index(channel) - 1],)


class SetLatentNoiseMask:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT", {}), "mask": ("MASK", {})}}

    def set_mask(self, samples, mask):
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class ImageCompositeMasked:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"

    @classmethod
    def INPUT_TYPES(cls):
        place = ("INT", {"default": 0, "min": 0, "max": 16384})
        return {
            "required": {
                "destination": ("IMAGE", {}),
                "source": ("IMAGE", {}),
                "x": place,
                "y": place,
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK", {})},
        }

    def composite(self, destination, source, x, y, resize_source, mask=None):
        if (x, y) != (0, 0) or destination.shape[1:3] != source.shape[1:3]:
            raise ValueError("the embedded host lays one picture over another of its size at 0, 0: run with ComfyUI")
        kept = 1.0 if mask is None else _resized(mask, destination.shape[1:3])[..., None]
        return (source * kept + destination[..., :3] * (1 - kept),)


def _resized(mask, size):
    return functional.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=tuple(size), mode="bilinear")[:, 0]


class ControlNetApplyAdvanced:
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
