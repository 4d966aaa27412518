"""Animated WebP files (RFC 9649, section 2.7): what is in one, and what libwebp's encoder leaves to be added.

libwebp joins a frame with the one before it where they look the same, and writes a still image where only one
is left. Its file is made an animation again, of the right length, and gets the graph in an EXIF chunk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from . import tags

ANIMATED, WITH_EXIF = 0x02, 0x08
"""Bits of the VP8X chunk's first byte."""

DURATION_AT = 12
"""Offset of a frame's duration, three bytes, in an ANMF chunk."""


@dataclass(frozen=True)
class Animation:
    """Canvas in pixels, frames, and the time that they are shown in milliseconds."""

    width: int
    height: int
    frames: int
    milliseconds: int


def read(path: Path) -> Animation:
    """What an animated file says of itself; ValueError for any other or for one that is cut short."""
    with path.open("rb") as file:
        found = _chunks(file)
        if not found or found[0][0] != b"VP8X":
            raise ValueError("it is not an animated webp file")
        file.seek(found[0][1] + 4)
        canvas = file.read(6)
        durations = [_duration(file, start) for kind, start, _ in found if kind == b"ANMF"]
    width, height = (int.from_bytes(canvas[i : i + 3], "little") + 1 for i in (0, 3))
    return Animation(width, height, len(durations), sum(durations))


def finish(path: Path, texts: dict[str, str], milliseconds: int) -> None:
    """Make libwebp's file an animation of ``milliseconds`` with ``texts`` inside, in place."""
    with path.open("r+b") as file:
        if _chunks(file)[0][0] != b"VP8X":
            _animate_still(path, file)
        _set_length(file, milliseconds)
        if texts:
            _add_exif(file, tags.exif(texts).removeprefix(b"Exif\0\0"))


def _chunks(file) -> list[tuple[bytes, int, int]]:
    """(kind, offset of its data, length) of each chunk; ValueError where they do not fill the file exactly."""
    end = file.seek(0, 2)
    file.seek(0)
    head, found, at = file.read(12), [], 12
    while at + 8 <= end:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        found.append((kind, at + 8, length))
        at += 8 + length + length % 2
    if head[:4] != b"RIFF" or head[8:] != b"WEBP" or int.from_bytes(head[4:8], "little") + 8 != end or at != end:
        raise ValueError("the webp file is not whole")
    return found


def _duration(file, start: int) -> int:
    file.seek(start + DURATION_AT)
    return int.from_bytes(file.read(3), "little")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _animate_still(path: Path, file) -> None:
    """Rewrite a still image as an animation of one frame."""
    from PIL import Image

    with Image.open(path) as image:
        size = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    file.seek(12)
    frame = bytes(6) + size + bytes(4) + file.read()
    canvas = _chunk(b"VP8X", bytes([ANIMATED, 0, 0, 0]) + size)
    endless = _chunk(b"ANIM", b"\xff\xff\xff\xff\0\0")
    file.seek(12)
    file.write(canvas + endless + _chunk(b"ANMF", frame))
    _set_size(file)


def _set_length(file, milliseconds: int) -> None:
    """Let the last frame, whose length libwebp can only guess, last until the end."""
    starts = [start for kind, start, _ in _chunks(file) if kind == b"ANMF"]
    left = milliseconds - sum(_duration(file, start) for start in starts[:-1])
    if not 0 < left < 1 << 24:
        raise ValueError(f"the frames before the last one take all of {milliseconds} ms")
    file.seek(starts[-1] + DURATION_AT)
    file.write(left.to_bytes(3, "little"))


def _add_exif(file, data: bytes) -> None:
    file.seek(20)
    flags = file.read(1)[0]
    file.seek(20)
    file.write(bytes([flags | WITH_EXIF]))
    file.seek(0, 2)
    file.write(_chunk(b"EXIF", data))
    _set_size(file)


def _set_size(file) -> None:
    size = file.seek(0, 2) - 8
    file.seek(4)
    file.write(struct.pack("<I", size))
