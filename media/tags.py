"""The graph inside a saved file, as ComfyUI's editor reads it: one tag ``workflow``, one ``prompt``."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

EXIF_FIRST = 0x0110
"""ComfyUI writes its tags as ``name:json`` into EXIF fields from Model (0x0110) downwards."""


def as_text(tags: dict) -> dict[str, str]:
    """Each tag's value as JSON."""
    return {name: json.dumps(value) for name, value in tags.items()}


def ffmetadata(texts: dict[str, str]) -> str:
    """ffmpeg's metadata file: tags of any length, where a command line has an end."""
    lines = [f"{_escaped(name)}={_escaped(text)}" for name, text in texts.items()]
    return "\n".join([";FFMETADATA1", *lines, ""])


def _escaped(text: str) -> str:
    return re.sub(r"([=;#\\\n])", r"\\\1", text)


def exif(texts: dict[str, str]) -> bytes:
    """An EXIF block of ``name:json`` texts, beginning with ``Exif\\0\\0``."""
    from PIL import Image

    block = Image.Exif()
    order = sorted(texts, key=lambda name: (name != "prompt", name != "workflow"))
    for place, name in enumerate(order):
        block[EXIF_FIRST - place] = f"{name}:{texts[name]}"
    return block.tobytes()


def into_webp(path: Path, texts: dict[str, str]) -> None:
    """Add an EXIF chunk to an animated webp file and say in its header that it is there (RFC 9649)."""
    data = exif(texts).removeprefix(b"Exif\0\0")
    with path.open("r+b") as file:
        head = file.read(21)
        if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X":
            raise ValueError(f"{path} is no animated webp file")
        file.seek(20)
        file.write(bytes([head[20] | 0x08]))
        file.seek(0, 2)
        file.write(b"EXIF" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def into_gif(path: Path, texts: dict[str, str]) -> None:
    """Add comment extensions, ``name:json`` each, before the end of a gif file (GIF89a, section 24)."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        if file.read(1) != b";":
            raise ValueError(f"{path} is no whole gif file")
        file.seek(-1, 2)
        for name, text in texts.items():
            data = f"{name}:{text}".encode()
            file.write(b"!\xfe")
            for start in range(0, len(data), 255):
                block = data[start : start + 255]
                file.write(bytes([len(block)]) + block)
            file.write(b"\0")
        file.write(b";")
