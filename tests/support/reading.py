"""What is in a video file that was written: its frames and its tags, read back with libav and Pillow."""

from __future__ import annotations

import json

import av
import torch
from PIL import Image


def decoded(path) -> torch.Tensor:
    with av.open(str(path)) as file:
        shown = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]
    return torch.stack(shown).float() / 255


def tags_in(path) -> dict:
    """The graph in a file, read as ComfyUI's editor reads each kind."""
    if path.suffix == ".webp":
        with Image.open(path) as picture:
            texts = [str(value) for value in picture.getexif().values()]
        return {name: json.loads(text) for name, text in (t.split(":", 1) for t in texts)}
    if path.suffix == ".gif":
        data, found = path.read_bytes(), {}
        for part in data.split(b"!\xfe")[1:]:
            text, place = b"", 0
            while part[place]:
                text += part[place + 1 : place + 1 + part[place]]
                place += part[place] + 1
            name, value = text.decode().split(":", 1)
            found[name] = json.loads(value)
        return found
    with av.open(str(path)) as file:
        found = {name.lower(): value for name, value in file.metadata.items()}
    return {name: json.loads(found[name]) for name in ("workflow", "prompt") if name in found}
