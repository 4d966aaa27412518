"""The graph inside a saved file, as ComfyUI's editor reads it: one tag ``workflow``, one ``prompt``."""

from __future__ import annotations

import json

EXIF_FIRST = 0x0110
"""ComfyUI writes its tags as ``name:json`` into EXIF fields from Model (0x0110) downwards."""


def as_text(tags: dict) -> dict[str, str]:
    """Each tag's value as JSON."""
    return {name: json.dumps(value) for name, value in tags.items()}


def exif(texts: dict[str, str]) -> bytes:
    """An EXIF block of ``name:json`` texts, beginning with ``Exif\\0\\0``."""
    from PIL import Image

    block = Image.Exif()
    order = sorted(texts, key=lambda name: (name != "prompt", name != "workflow"))
    for offset, name in enumerate(order):
        block[EXIF_FIRST - offset] = f"{name}:{texts[name]}"
    return block.tobytes()


def within(texts: dict[str, str], limit: int | None) -> dict[str, str]:
    """As much of ``texts`` as an EXIF block of ``limit`` bytes holds: all, else the workflow, else the prompt."""
    parts: list[dict[str, str]] = [{name: texts[name]} for name in ("workflow", "prompt") if name in texts]
    return next((some for some in (texts, *parts) if limit is None or len(exif(some)) <= limit), {})


def image_options(name: str, texts: dict[str, str]) -> dict:
    """What Pillow's ``save`` is given to put texts into an image of its format ``name``."""
    from PIL.PngImagePlugin import PngInfo

    if not texts:
        return {}
    if name != "PNG":
        return {"exif": exif(texts)}
    information = PngInfo()
    for key, text in texts.items():
        information.add_text(key, text)
    return {"pnginfo": information}
