"""Frames and sounds to save, and what is heard in a file."""

from __future__ import annotations

import av
import numpy as np
import torch

SOUNDING = ("mp4-h264", "webm-vp9", "mkv-ffv1")


def moving_bar(count: int, height: int = 32, width: int = 48, channels: int = 3) -> torch.Tensor:
    """A bar that moves over a smooth ground, [count, height, width, channels]; alpha is 1 on the left, 0.25 right."""
    ground = torch.linspace(0, 1, width).expand(count, height, width).unsqueeze(-1).repeat(1, 1, 1, 3)
    for i in range(count):
        ground[i, :, (i * 3) % width : (i * 3) % width + 4] = torch.tensor([1.0, 0.2, 0.1])
    alpha = torch.ones(count, height, width, 1)
    alpha[:, :, width // 2 :] = 0.25
    return {
        1: ground[..., :1],
        2: torch.cat([ground[..., :1], alpha], -1),
        3: ground,
        4: torch.cat([ground, alpha], -1),
    }[channels]


def tone(seconds: float, rate: int = 48000, channels: int = 2) -> dict:
    """AUDIO: a tone of 440 Hz at half of full scale."""
    time = torch.arange(round(seconds * rate)) / rate
    return {"waveform": (torch.sin(time * 2 * np.pi * 440) * 0.5).expand(channels, -1)[None], "sample_rate": rate}


def heard(path) -> tuple[torch.Tensor, int]:
    """The samples of the first channel of a file's sound, [n], and their rate."""
    with av.open(str(path)) as file:
        (stream,) = file.streams.audio
        to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        parts = [part.to_ndarray() for frame in file.decode(audio=0) for part in to_float.resample(frame)]
    return torch.from_numpy(np.concatenate(parts, 1))[0], stream.rate
