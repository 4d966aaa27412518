"""What is made of templates: subgraph blueprints of the commonest jobs, and templates that open in App mode."""

from __future__ import annotations

from .source import App, Blueprint


def apps() -> dict[str, App]:
    """By the title of the template in App mode."""
    return {
        "SANA-Sprint text to image.app": App(
            "sana_sprint_text_to_image",
            (("2", "text"), ("3", "width"), ("3", "height"), ("4", "seed"), ("4", "steps"), ("1", "pipeline")),
            ("6",),
        ),
        "SANA-Video text to video.app": App(
            "sana_video_text_to_video",
            (
                ("2", "prompt"),
                ("2", "negative_prompt"),
                ("3", "frames"),
                ("4", "seed"),
                ("4", "steps"),
                ("1", "pipeline"),
            ),
            ("6",),
        ),
    }


def text_to_image() -> Blueprint:
    return Blueprint(
        "SANA-Sprint text to image",
        "sana_sprint_text_to_image",
        (("1",), ("2", "3"), ("4",), ("5",)),
        {
            "prompt": ("2", "text"),
            "width": ("3", "width"),
            "height": ("3", "height"),
            "seed": ("4", "seed"),
            "steps": ("4", "steps"),
            "guidance_scale": ("2", "guidance_scale"),
            "pipeline": ("1", "pipeline"),
        },
        {"IMAGE": ("5", 0)},
        "Generates an image from a prompt with SANA-Sprint, in 1 to 4 steps.",
    )


def image_to_image() -> Blueprint:
    return Blueprint(
        "SANA-Sprint image to image",
        "sana_sprint_image_to_image",
        (("1",), ("12", "7"), ("8",), ("9",), ("10",)),
        {
            "image": ("12", "images"),
            "prompt": ("8", "text"),
            "denoise": ("9", "denoise"),
            "width": ("12", "width"),
            "height": ("12", "height"),
            "seed": ("9", "seed"),
            "steps": ("9", "steps"),
            "pipeline": ("1", "pipeline"),
        },
        {"IMAGE": ("10", 0)},
        "Changes an image towards a prompt with SANA-Sprint; denoise says how much.",
    )


def text_to_video() -> Blueprint:
    return Blueprint(
        "SANA-Video text to video",
        "sana_video_text_to_video",
        (("1",), ("2", "3"), ("4",), ("5",)),
        {
            "prompt": ("2", "prompt"),
            "negative_prompt": ("2", "negative_prompt"),
            "width": ("3", "width"),
            "height": ("3", "height"),
            "frames": ("3", "frames"),
            "seed": ("4", "seed"),
            "steps": ("4", "steps"),
            "cfg": ("4", "cfg"),
            "pipeline": ("1", "pipeline"),
        },
        {"IMAGE": ("5", 0)},
        "Generates the frames of a video from a prompt with SANA-Video, for Sana Save Video.",
    )


def blueprints() -> tuple[Blueprint, ...]:
    return (text_to_image(), image_to_image(), text_to_video())
