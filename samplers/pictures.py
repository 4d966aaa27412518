"""Pictures between the size asked for and the trained one."""

from __future__ import annotations

import torch
from torch.nn import functional


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
