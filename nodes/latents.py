"""sana/latent: sizes, empty latents, and pictures back to the size asked for."""

from __future__ import annotations

from .. import host
from ..model_loaders.resolutions import BINS, nearest_size
from ..samplers.pictures import crop_to_size

RATIO = 32
CHANNELS = 32
LARGEST = 16384


def _side(name: str, step: int = 1, least: int = 1, tip: str = ""):
    return (
        "INT",
        {"default": 1024, "min": least, "max": LARGEST, "step": step, "tooltip": tip or f"{name} in pixels."},
    )


class SanaResolution:
    DISPLAY_NAME = "Sana Resolution"
    CATEGORY = "sana/latent"
    DESCRIPTION = "The size SANA was trained on that is nearest in aspect ratio to the one you ask for."
    SEARCH_ALIASES = ["sana", "aspect ratio", "resolution binning", "size"]
    FUNCTION = "choose"
    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    OUTPUT_TOOLTIPS = ("Trained width in pixels.", "Trained height in pixels.")

    @classmethod
    def INPUT_TYPES(cls):
        bins = {"default": "1024px", "tooltip": "Which model's sizes: by its resolution."}
        return {"required": {"width": _side("Width"), "height": _side("Height"), "bins": (list(BINS), bins)}}

    def choose(self, width, height, bins):
        return nearest_size(width, height, bins)


class SanaEmptyLatent:
    DISPLAY_NAME = "Sana Empty Latent"
    CATEGORY = "sana/latent"
    DESCRIPTION = "An empty latent for text to image: 32 channels at a 32nd of the size."
    SEARCH_ALIASES = ["sana", "empty latent image", "size"]
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("An empty latent for a SANA sampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        tip = "A multiple of 32, in pixels."
        batch = {"default": 1, "min": 1, "max": 4096, "tooltip": "Pictures drawn together from one seed."}
        return {
            "required": {
                "width": _side("Width", RATIO, RATIO, tip),
                "height": _side("Height", RATIO, RATIO, tip),
                "batch_size": ("INT", batch),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width=None, height=None):
        return _wrong_side("width", width) or _wrong_side("height", height) or True

    def make(self, width, height, batch_size):
        if wrong := _wrong_side("width", width) or _wrong_side("height", height):
            raise ValueError(wrong)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give 1 or more")
        return ({"samples": host.current().empty_latent((batch_size, CHANNELS, height // RATIO, width // RATIO))},)


def _wrong_side(name: str, side: int | None) -> str | None:
    """What is wrong with a side, or None; a side that another node gives is None too."""
    if side is None or (RATIO <= side <= LARGEST and side % RATIO == 0):
        return None
    below = min(max(side // RATIO * RATIO, RATIO), LARGEST - RATIO)
    return (
        f"{name} is {side}, not a multiple of {RATIO} from {RATIO} to {LARGEST}; "
        f"the nearest are {below} and {below + RATIO}"
    )


class SanaCropToSize:
    DISPLAY_NAME = "Sana Crop To Size"
    CATEGORY = "sana/latent"
    DESCRIPTION = "Resizes and centre-crops pictures to the size asked for, after SanaResolution chose a trained one."
    SEARCH_ALIASES = ["sana", "resize and crop", "resolution binning"]
    FUNCTION = "crop"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("Pictures of exactly the size given.",)

    @classmethod
    def INPUT_TYPES(cls):
        images = ("IMAGE", {"tooltip": "Pictures of a trained size."})
        return {"required": {"images": images, "width": _side("Width"), "height": _side("Height")}}

    def crop(self, images, width, height):
        return (crop_to_size(images, width, height),)
