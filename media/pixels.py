"""Frames as bytes, and which frames can be."""

from __future__ import annotations

import numpy as np
import torch

CHANNELS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGB and alpha"}


def check_frames(frames: torch.Tensor) -> None:
    """ValueError for what is not frames [n, H, W, C] of 1 to 4 channels, n, H and W at least 1."""
    if frames.ndim != 4 or 0 in frames.shape[1:3]:
        raise ValueError(f"the frames have the shape {list(frames.shape)}; give [frames, height, width, channels]")
    if frames.shape[-1] not in CHANNELS:
        kinds = ", ".join(f"{count} ({kind})" for count, kind in CHANNELS.items())
        raise ValueError(f"the frames have {frames.shape[-1]} channels; give {kinds}")
    if not len(frames):
        raise ValueError("there are no frames to save")


def has_alpha(frames: torch.Tensor) -> bool:
    """Whether the last of the channels is alpha."""
    return frames.shape[-1] in (2, 4)


def to_bytes(frame: torch.Tensor, alpha: bool = False) -> np.ndarray:
    """A frame [H, W, C] in [0, 1] as bytes [H, W, 3], rounded; with ``alpha`` [H, W, 4] where it has alpha.

    Grey becomes RGB. What is not a number becomes 0.
    """
    frame = frame.detach().to("cpu", torch.float32)
    if frame.shape[-1] < 3:
        frame = torch.cat([frame[..., :1].expand(-1, -1, 3), frame[..., 1:]], -1)
    frame = torch.nan_to_num(frame if alpha else frame[..., :3]).clamp(0.0, 1.0)
    return (frame * 255.0).round().to(torch.uint8).contiguous().numpy()
