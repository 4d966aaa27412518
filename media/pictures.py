"""Images at another size: to start a video from, or back to the size asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional


def cover(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """An image [H, W, C] in [0, 1] as [height, width, 3]: its middle at the shape asked for, then resized.

    Resizing is Pillow's Lanczos on 8 bits, as in diffusers' VideoProcessor; an image of the right size is
    kept as it is. Grey becomes RGB and alpha is dropped.
    """
    from PIL import Image

    from .pixels import to_bytes

    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"the image has the shape {list(image.shape)}; give images of 1, 3 or 4 channels")
    image = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3]
    if image.shape[:2] == (height, width):
        return image
    rows, columns = image.shape[:2]
    shape, wanted = columns / rows, width / height
    top, left = _margin(rows, shape / wanted), _margin(columns, wanted / shape)
    middle = to_bytes(image[top : rows - top, left : columns - left])
    resized = Image.fromarray(middle).resize((width, height), resample=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized).astype(np.float32) / 255.0)


def _margin(side: int, share: float) -> int:
    """What is cut off each end of a side of which a ``share`` is wanted.

    As ComfyUI crops to the centre (comfy.utils.common_upscale), except that something is always left.
    """
    return min(max(0, round((side - side * share) / 2)), (side - 1) // 2)


def crop_to_size(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resize [B, H, W, C] to cover ``width`` x ``height`` and cut the middle out.

    diffusers' resize_and_crop_tensor (bilinear), except that a side which its rounding would leave
    a pixel short is given that pixel.
    """
    if width < 1 or height < 1:
        raise ValueError(f"the size is {width} x {height}; give a width and a height of at least 1")
    old_height, old_width = images.shape[1:3]
    if (old_height, old_width) == (height, width):
        return images
    ratio = max(height / old_height, width / old_width)
    size = max(int(old_height * ratio), height), max(int(old_width * ratio), width)
    resized = functional.interpolate(images.movedim(-1, 1), size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[:, :, top : top + height, left : left + width].movedim(1, -1)
