"""A picture to start a video from, at the video's size."""

from __future__ import annotations

import numpy as np
import torch


def cover(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """A picture [H, W, C] in [0, 1] as [height, width, 3]: its middle at the shape asked for, then resized.

    Resizing is Pillow's Lanczos on 8 bits, as in diffusers' VideoProcessor; a picture of the right size is
    kept as it is. Grey becomes RGB and alpha is dropped.
    """
    from PIL import Image

    from .pixels import to_bytes

    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"the image has the shape {list(image.shape)}; give pictures of 1, 3 or 4 channels")
    image = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3]
    if image.shape[:2] == (height, width):
        return image
    rows, columns = image.shape[:2]
    kept = min(rows, round(columns * height / width)), min(columns, round(rows * width / height))
    top, left = (rows - kept[0]) // 2, (columns - kept[1]) // 2
    middle = to_bytes(image[top : top + max(kept[0], 1), left : left + max(kept[1], 1)])
    resized = Image.fromarray(middle).resize((width, height), resample=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized).astype(np.float32) / 255.0)
