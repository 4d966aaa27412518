"""sana/image: a canvas in a node."""

from __future__ import annotations

from .. import host
from ..media import sketch as sketches
from . import checks

LARGEST = 8192


def _side(name: str):
    return (
        "INT",
        {"default": 1024, "min": 32, "max": LARGEST, "step": 32, "tooltip": f"{name} of the image in pixels."},
    )


def _check_sketch(sketch=None, **_):
    """True, or what is wrong with the text of a sketch."""
    try:
        sketches.parse(sketch or "")
    except ValueError as error:
        return str(error)
    return True


class SanaSketch:
    DISPLAY_NAME = "Sana Sketch"
    CATEGORY = "sana/image"
    DESCRIPTION = (
        "A canvas in the node: pen, eraser, size, undo. The sketch is saved with the workflow. With SANA-Sprint, a "
        "ControlNet and Run (On Change) each stroke renders a new image."
    )
    SEARCH_ALIASES = [
        "sana",
        "sketch",
        "scribble",
        "canvas",
        "draw",
        "paint",
        "real time",
        "controlnet",
        "inpaint",
        "mask",
    ]
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The sketch on its paper.", "1 where strokes are.")

    def __init__(self):
        self.shown = (None, {})

    @classmethod
    def INPUT_TYPES(cls):
        text = {
            "default": "",
            "socketless": True,
            "tooltip": "The strokes. They are made on the canvas of the node and saved with the workflow.",
        }
        under = {"tooltip": "An image shown under the canvas, to trace; it is not part of the output."}
        return {
            "required": {"sketch": ("STRING", text), "width": _side("Width"), "height": _side("Height")},
            "optional": {"image": ("IMAGE", under)},
        }

    VALIDATE_INPUTS = checks.Validation(_check_sketch)

    def make(self, sketch, width, height, image=None):
        result = sketches.render(sketch, width, height)
        if image is not self.shown[0]:
            self.shown = (image, {} if image is None else host.current().underlay(image[:1]))
        return {"ui": self.shown[1], "result": result} if self.shown[1] else result
