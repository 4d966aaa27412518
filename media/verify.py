"""A written file is opened again before it gets its name: whether it holds what was given."""

from __future__ import annotations

from pathlib import Path

from . import webp
from .formats import VideoFormat


class Damaged(ValueError):
    """A file that does not hold what was written to it."""


def finish(path: Path, kind: VideoFormat, texts: dict[str, str], milliseconds: int) -> None:
    """Add what libav leaves to be added; Damaged where its file is not whole."""
    try:
        if kind.finish is not None:
            kind.finish(path, texts, milliseconds)
    except ValueError as error:
        raise Damaged(str(error)) from error


def check_video(path: Path, kind: VideoFormat, size: tuple[int, int], frames: int, milliseconds: int, sound: bool):
    """Damaged where a file has not one video of ``size`` (width, height) and ``frames`` frames, and its sound.

    Packets are counted, each of which holds one frame, and the first one is decoded; of gif all are decoded,
    because its comments come as packets too. libwebp joins equal or nearly equal frames into one that is shown
    for longer, so of webp the whole file and the time count, and the frames as a limit.
    """
    found = _read_webp(path, frames) if kind.container == "webp" else _read(path, kind.container == "gif")
    wanted = {"size": tuple(size), "frames": frames, "sound": sound}
    if kind.container == "webp":
        wanted["milliseconds"] = milliseconds
    for name, value in wanted.items():
        if found[name] != value:
            raise Damaged(f"its {name} read back as {found[name]}, and not {value}")


def check_image(path: Path, size: tuple[int, int]) -> None:
    """Damaged where a file is not a whole image of ``size`` (width, height)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            found = image.size
    except (OSError, SyntaxError) as error:
        raise Damaged(f"it cannot be read back: {error}") from error
    if found != tuple(size):
        raise Damaged(f"its size read back as {found}, and not {tuple(size)}")


def _read(path: Path, decode_all: bool) -> dict:
    import av

    try:
        with av.open(str(path)) as file:
            if len(file.streams.video) != 1:
                raise Damaged(f"it has {len(file.streams.video)} video streams")
            video, size, packets, shown, heard = file.streams.video[0], None, 0, 0, set()
            for packet in file.demux():
                if packet.stream is not video:
                    heard |= {packet.stream.index} if packet.size else set()
                    continue
                packets += bool(packet.size)
                for frame in packet.decode() if decode_all or size is None else ():
                    size, shown = (frame.width, frame.height), shown + 1
    except av.FFmpegError as error:
        raise Damaged(f"it cannot be read back: {error.strerror}") from error
    return {"size": size, "frames": shown if decode_all else packets, "sound": len(heard) == 1}


def _read_webp(path: Path, most: int) -> dict:
    try:
        found = webp.read(path)
    except ValueError as error:
        raise Damaged(str(error)) from error
    size = (found.width, found.height)
    check_image(path, size)
    frames = most if 1 <= found.frames <= most else found.frames
    return {"size": size, "frames": frames, "sound": False, "milliseconds": found.milliseconds}
