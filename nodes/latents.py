"""sana/latent: sizes, empty latents, image and video latents to start from, and cropping to the requested size."""

from __future__ import annotations

import torch

from .. import host
from ..media.pictures import cover, crop_to_size
from ..model_loaders.versions import check_libraries
from ..networks.latent_spaces import DC_AE, VaeSpec, neutral_latent
from ..networks.resolutions import BIN_NAMES, nearest_size
from ..samplers import noise, trigflow
from . import checks
from .inputs import schedule_inputs, seed_input, validate_schedule

VIDEO_STEP = 16
LARGEST = 16384
MOST_FRAMES = 100_000


def _side(name: str, step: int = 1, least: int = 1, tip: str = "", default: int = 1024):
    return (
        "INT",
        {"default": default, "min": least, "max": LARGEST, "step": step, "tooltip": tip or f"{name} in pixels."},
    )


def _video_inputs() -> dict:
    """Inputs of both video latents; the VAE determines which multiples the sizes must be."""
    tip = "In pixels: a multiple of 16 with the Wan VAE (480p), of 32 with the LTX-2 VAE (720p)."
    frames = {
        "default": 81,
        "min": 1,
        "max": MOST_FRAMES,
        "tooltip": "Rounded down to what the VAE supports: 1, 5, 9, … with Wan, 1, 9, 17, … with LTX-2.",
    }
    batch = {"default": 1, "min": 1, "max": 4096, "tooltip": "Videos generated together from one seed."}
    return {
        "width": _side("Width", VIDEO_STEP, VIDEO_STEP, tip, 832),
        "height": _side("Height", VIDEO_STEP, VIDEO_STEP, tip, 480),
        "frames": ("INT", frames),
        "batch_size": ("INT", batch),
    }


def _video_size_message(width, height, frames, batch_size=1, step: int = VIDEO_STEP) -> str | None:
    """An error message for a video's size, or None; inputs that are connected to another node are None."""
    for name, count in (("frames", frames), ("batch_size", batch_size)):
        if count is not None and count < 1:
            return f"{name} is {count}; give 1 or more"
    if frames is not None and frames > MOST_FRAMES:
        return f"frames is {frames}; give at most {MOST_FRAMES}"
    return sides_message(width, height, step)


def _video_shape(spec: VaeSpec, width: int, height: int, frames: int, batch_size: int) -> tuple[int, ...]:
    """[B, C, f, h, w]; ValueError for a size that the VAE does not support."""
    message = _video_size_message(width, height, frames, batch_size, max(VIDEO_STEP, spec.spatial_ratio))
    if message:
        raise ValueError(message)
    ratio = spec.spatial_ratio
    least = spec.space.smallest_side * ratio
    if min(width, height) < least:
        raise ValueError(f"the size is {width} x {height}; {spec.name} needs sides of at least {least}")
    return (batch_size, spec.latent_channels, spec.latent_frames(frames), height // ratio, width // ratio)


def _video_spec(vae):
    spec = host.current().vae_spec(vae)
    if not spec.is_video:
        raise ValueError(
            "this VAE is DC-AE, SANA's autoencoder for images; for video load the Wan 2.1 VAE or the LTX-2 video VAE"
        )
    return spec


def _check_sides(width=None, height=None, **_):
    return sides_message(width, height) or True


def _check_video_size(width=None, height=None, frames=None, **_):
    return _video_size_message(width, height, frames) or True


class SanaResolution:
    DISPLAY_NAME = "Sana Resolution"
    CATEGORY = "sana/latent"
    DESCRIPTION = "The size that SANA was trained on with the aspect ratio nearest to the requested size."
    SEARCH_ALIASES = ["sana", "aspect ratio", "resolution binning", "size"]
    FUNCTION = "choose"
    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    OUTPUT_TOOLTIPS = ("Trained width in pixels.", "Trained height in pixels.")

    @classmethod
    def INPUT_TYPES(cls):
        bins = {"default": "1024px", "tooltip": "The model's table of sizes, by its resolution."}
        return {"required": {"width": _side("Width"), "height": _side("Height"), "bins": (list(BIN_NAMES), bins)}}

    def choose(self, width, height, bins):
        check_libraries()
        return nearest_size(width, height, bins)


class SanaEmptyLatent:
    DISPLAY_NAME = "Sana Empty Latent"
    CATEGORY = "sana/latent"
    DESCRIPTION = "An empty latent for text to image: 32 channels at 1/32 of the size."
    SEARCH_ALIASES = ["sana", "empty latent image", "size"]
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("An empty latent for a SANA sampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        tip = "A multiple of 32, in pixels."
        batch = {"default": 1, "min": 1, "max": 4096, "tooltip": "Images generated together from one seed."}
        return {
            "required": {
                "width": _side("Width", DC_AE.cell, DC_AE.cell, tip),
                "height": _side("Height", DC_AE.cell, DC_AE.cell, tip),
                "batch_size": ("INT", batch),
            }
        }

    VALIDATE_INPUTS = checks.Validation(_check_sides)

    def make(self, width, height, batch_size):
        if message := sides_message(width, height):
            raise ValueError(message)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give 1 or more")
        samples = host.current().empty_latent((batch_size, DC_AE.channels, height // DC_AE.cell, width // DC_AE.cell))
        # since 0.33 ComfyUI uses this to resize an empty latent for a model with another cell size
        return ({"samples": samples, "downscale_ratio_spacial": DC_AE.cell},)


def sides_message(width: int | None, height: int | None, step: int = DC_AE.cell) -> str | None:
    """An error message for an image's or a frame's sides, or None; what another node gives is None."""
    return _side_message("width", width, step) or _side_message("height", height, step)


def _side_message(name: str, side: int | None, step: int) -> str | None:
    """An error message for a side, or None; a side that is connected to another node is None."""
    if side is None or (step <= side <= LARGEST and side % step == 0):
        return None
    below = min(max(side // step * step, step), LARGEST - step)
    return (
        f"{name} is {side}, not a multiple of {step} from {step} to {LARGEST}; "
        f"the nearest are {below} and {below + step}"
    )


class SanaEmptyVideoLatent:
    DISPLAY_NAME = "Sana Empty Video Latent"
    CATEGORY = "sana/latent"
    DESCRIPTION = "An empty latent for text to video, in the shape of the video VAE."
    SEARCH_ALIASES = ["sana", "sana video", "text to video", "empty latent video", "frames", "size"]
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("An empty latent for SANA-Video.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": ("VAE", {"tooltip": "The model's video VAE; it determines the shape."}),
                **_video_inputs(),
            }
        }

    VALIDATE_INPUTS = checks.Validation(_check_video_size)

    def make(self, vae, width, height, frames, batch_size):
        shape = _video_shape(_video_spec(vae), width, height, frames, batch_size)
        return ({"samples": host.current().empty_latent(shape)},)


class SanaImg2ImgLatent:
    DISPLAY_NAME = "Sana Image To Image Latent"
    CATEGORY = "sana/latent"
    DESCRIPTION = (
        "Adds noise to an image for SANA-Sprint. Connect the latent and the sigmas to Sana SCM Sample, with add_noise "
        "disabled and the same seed. denoise on Sana SCM Sample does the same in one node."
    )
    SEARCH_ALIASES = ["sana", "sana sprint", "image to image", "img2img", "strength", "add noise"]
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT", "SIGMAS")
    OUTPUT_TOOLTIPS = ("The noised image, for a sampler that adds no noise.", "The remaining angles of the schedule.")

    @classmethod
    def INPUT_TYPES(cls):
        strength = {
            "default": 0.6,
            "min": 0.0,
            "max": 1.0,
            "step": 0.01,
            "tooltip": "How much the image changes: 0 keeps it, 1 ignores it.",
        }
        start = {
            "default": trigflow.STARTS[0],
            "tooltip": (
                "continuous starts exactly at strength, also between steps. schedule skips whole steps, as diffusers "
                "does: 0.6 of two steps skips none, and nothing of the image is kept."
            ),
        }
        return {
            "required": {
                "samples": ("LATENT", {"tooltip": "The latent of an image, from VAE Encode with SANA's VAE."}),
                "seed": seed_input(),
                "strength": ("FLOAT", strength),
                **schedule_inputs(),
                "start": (list(trigflow.STARTS), start),
            }
        }

    VALIDATE_INPUTS = checks.Validation(validate_schedule)

    def make(self, samples, seed, strength, steps, max_timesteps, intermediate_timesteps, start):
        image = samples["samples"]
        if image.ndim != 4 or image.shape[1] != DC_AE.channels:
            raise ValueError(
                f"the latent has the shape {list(image.shape)} and SANA-Sprint takes "
                f"[batch, {DC_AE.channels}, height, width]: encode the image with DC-AE, SANA's VAE"
            )
        if samples.get("noise_mask") is not None:
            raise ValueError(
                "the latent has a noise mask, which this node does not support: to inpaint, give it to Sana SCM Sample "
                "directly and set denoise there"
            )
        sigmas = trigflow.img2img_sigmas(strength, steps, max_timesteps, intermediate_timesteps, start)
        if not len(sigmas):
            return samples, sigmas
        flow = trigflow.TrigFlow()
        start_noise = noise.draw(noise.seeded_generator(seed), image.shape).to(image)
        noised = flow.mix(sigmas[0], start_noise, image)
        return {**samples, "samples": flow.inverse_noise_scaling(sigmas[0], noised)}, sigmas


class SanaImageToVideoLatent:
    DISPLAY_NAME = "Sana Image To Video Latent"
    CATEGORY = "sana/latent"
    DESCRIPTION = (
        "A latent whose first frame is an image that stays fixed, for image to video. The image is cropped around its "
        "centre to the video's aspect ratio and resized."
    )
    SEARCH_ALIASES = ["sana", "sana video", "image to video", "i2v", "first frame", "start image"]
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("A latent for SANA-Video with its first frame set and kept by a noise mask.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": ("VAE", {"tooltip": "The model's video VAE; it encodes the image and determines the shape."}),
                "image": ("IMAGE", {"tooltip": "The first frame of the video; the first image of a batch."}),
                **_video_inputs(),
            }
        }

    VALIDATE_INPUTS = checks.Validation(_check_video_size)

    def make(self, vae, image, width, height, frames, batch_size):
        spec = _video_spec(vae)
        shape = _video_shape(spec, width, height, frames, batch_size)
        first = vae.encode(cover(image[0], width, height)[None])
        samples = host.current().empty_latent(shape)
        samples += neutral_latent(spec.space).to(samples).view(1, -1, 1, 1, 1)
        samples[:, :, :1] = first.to(samples)
        mask = torch.ones_like(samples[:, :1])
        mask[:, :, :1] = 0.0
        return ({"samples": samples, "noise_mask": mask},)


class SanaCropToSize:
    DISPLAY_NAME = "Sana Crop To Size"
    CATEGORY = "sana/latent"
    DESCRIPTION = "Resizes and centre-crops images to the requested size, after Sana Resolution chose a trained size."
    SEARCH_ALIASES = ["sana", "resize and crop", "resolution binning"]
    FUNCTION = "crop"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("Images of exactly the requested size.",)

    @classmethod
    def INPUT_TYPES(cls):
        images = ("IMAGE", {"tooltip": "Images of a trained size."})
        return {"required": {"images": images, "width": _side("Width"), "height": _side("Height")}}

    def crop(self, images, width, height):
        return (crop_to_size(images, width, height),)
