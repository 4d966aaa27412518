"""A small version of a video that browsers do not play, for the node that saved it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from . import formats, writer
from .claims import Names

FRAMES, SIDE, QUALITY = 48, 320, 70
"""At most so many frames, pixels on the longer side, and the encoder's quality."""


class Thumbnail:
    """Every n-th of ``count`` frames, made small while they pass by; ``fps``: those of the whole video."""

    def __init__(self, count: int, fps: float):
        self.stride = max(1, -(-count // FRAMES))
        self.fps = max(fps / self.stride, writer.FPS[0])
        self.frames: list[torch.Tensor] = []

    def noting(self, frames: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The pieces [n, H, W, C] unchanged."""
        number = 0
        for piece in frames:
            for i in range(len(piece)):
                if (number + i) % self.stride == 0:
                    self.frames.append(_small(piece[i : i + 1]))
            number += len(piece)
            yield piece

    def write(self, names: Callable[[str], Names]) -> Path:
        """The path of the file, in the first format that is installed here and that browsers play.

        ``names``: a suffix to the paths to try, as SaveTarget.names.
        """
        format, kind = next((name, row) for name, row in formats.VIDEO_FORMATS.items() if _usable(name, row))
        return writer.write_video(names(kind.suffix), self.frames, self.fps, format, QUALITY)


def _usable(name: str, kind: formats.VideoFormat) -> bool:
    return kind.plays and name in formats.available()


def _small(frame: torch.Tensor) -> torch.Tensor:
    height, width = frame.shape[1:3]
    scale = min(1.0, SIDE / max(height, width))
    size = [max(1, round(side * scale)) for side in (height, width)]
    pixels = frame[..., :3].float().cpu().movedim(-1, 1)
    return torch.nn.functional.interpolate(pixels, size=size, mode="area").movedim(1, -1)
