"""Frames to files: a video, one frame at a time, or numbered images.

A file is written under a claimed hidden name, read back, and renamed when it is whole: nothing half-written stays,
and no other file is replaced.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from . import sound as sounds
from . import tags as tagging
from . import verify
from .claims import CannotWrite, Claim, Names, claimed
from .encoder import Encoder
from .formats import VIDEO_FORMATS, FrameFormat, VideoFormat, frame_format, has_encoder
from .pixels import check_frames, has_alpha, to_bytes
from .prefixes import check_folder
from .sound import Sound

logger = logging.getLogger(__name__)

FPS = (0.01, 1000)
"""The lowest and the highest frames per second."""

NO_SPACE = "no space is left on the disk; free some, or choose another output folder"
REASONS = {
    errno.ENOSPC: NO_SPACE,
    errno.EFBIG: "the file system takes no larger file; choose an output folder with more space",
    errno.EACCES: "permission denied; choose another output folder",
    errno.EROFS: "the file system is read-only; choose another output folder",
    errno.ENOMEM: "the encoder has not enough memory",
}
if hasattr(errno, "EDQUOT"):
    REASONS[errno.EDQUOT] = NO_SPACE


class SourceFailed(Exception):
    """Carries an OSError that was raised while frames were made, past those that mean the file."""


def check_video(fps: float, format: str, quality: int, audio: Mapping | None = None) -> Sound | None:
    """The sound to encode; ValueError or CannotWrite, saying what to give, for settings that make no video."""
    if not FPS[0] <= fps <= FPS[1]:
        raise ValueError(f"fps is {fps}; give the frames per second, from {FPS[0]} to {FPS[1]}, such as 16")
    if format not in VIDEO_FORMATS:
        raise ValueError(f"format is {format!r}; choose one of {', '.join(VIDEO_FORMATS)}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; give a number from 1 to 100")
    kind = VIDEO_FORMATS[format]
    if kind.sound is None and not sounds.is_empty(audio):
        raise ValueError(f"{format} has no sound: choose mp4-h264, webm-vp9 or mkv-ffv1, or leave audio out")
    sound = None if kind.sound is None else sounds.checked(audio)
    _check_encoders(format, kind.encoder, *([kind.sound.encoder] if kind.sound and sound else []))
    return sound


def _check_encoders(format: str, *encoders: str) -> None:
    """CannotWrite where libav is missing or lacks an encoder."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise CannotWrite(f"{format} needs PyAV, which cannot be imported ({error}): pip install av") from error
    for encoder in encoders:
        if not has_encoder(encoder):
            raise CannotWrite(
                f"{format} needs the encoder {encoder}, which PyAV here has not: "
                "pip install --upgrade av, or choose another format"
            )


def write_video(
    path: Path | Names,
    pieces: Iterable[torch.Tensor],
    fps: float,
    format: str = "mp4-h264",
    quality: int = 80,
    tags: dict | None = None,
    audio: Mapping | None = None,
) -> Path:
    """Write frames, given as pieces [n, H, W, C] in [0, 1], and return the path of the file.

    ``path``: the file's, or a function from 0, 1, 2, … to the paths of which the first free one is taken; its
    suffix is the format's. ``tags``: name to a value that JSON can hold. ``audio``: ComfyUI's, ``waveform``
    [1, channels, samples] and ``sample_rate``; it is cut at the video's end, or silent up to it. Alpha is left
    out. Raises ValueError for what makes no video and CannotWrite where the disk or the encoder fails.
    """
    sound = check_video(fps, format, quality, audio)
    kind, texts = VIDEO_FORMATS[format], tagging.as_text(tags or {})
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None:
        raise ValueError("there are no frames to save")
    check_frames(first)
    _warn(kind, format, fps, first)
    with _claimed(path) as (claim,):
        _encode(claim, kind, _frames(first, pieces, kind.even), fps, quality, texts, sound)
        return claim.publish()


def _warn(kind: VideoFormat, format: str, fps: float, first: torch.Tensor) -> None:
    if has_alpha(first):
        logger.warning("%s holds no alpha: the video is saved without it", format)
    if kind.fastest is not None and fps > kind.fastest:
        logger.warning(
            "%s at %g frames per second plays slowly: players show at most %g; choose mp4-h264 or webm-vp9",
            format,
            fps,
            kind.fastest,
        )


def _frames(first: torch.Tensor, others: Iterator[torch.Tensor], even: bool) -> Iterator[np.ndarray]:
    shape = first.shape[1:]
    pad = [(0, side % 2) if even else (0, 0) for side in shape[:2]]
    piece = first
    while piece is not None:
        if piece.shape[1:] != shape:
            raise ValueError(f"a frame is {list(piece.shape[1:])} where the first was {list(shape)}")
        for frame in piece:
            yield np.pad(to_bytes(frame), (*pad, (0, 0)), mode="edge")
        piece = _next(others)


def _next(pieces: Iterator[torch.Tensor]) -> torch.Tensor | None:
    """The next piece; an OSError of whoever makes the frames is not the file's."""
    try:
        return next(pieces, None)
    except OSError as error:
        raise SourceFailed from error


def _encode(claim: Claim, kind: VideoFormat, frames: Iterator[np.ndarray], fps, quality, texts, sound) -> None:
    """Write and check a claim's part file."""
    rate = Fraction(fps).limit_denominator(1001)
    first = next(frames)
    size = first.shape[1], first.shape[0]
    with Encoder(claim.part, kind, size, rate, quality, texts, sound) as encoder:
        encoder.add(first)
        for frame in frames:
            encoder.add(frame)
            claim.touch()
    milliseconds = round(encoder.count / rate * 1000)
    verify.finish(claim.part, kind, texts, milliseconds)
    verify.check_video(claim.part, kind, size, encoder.count, milliseconds, sound is not None)


@contextmanager
def _claimed(path: Path | Names, count: int = 1) -> Iterator[list[Claim]]:
    """The claims to write; whatever stops a file from being written becomes CannotWrite with the reason."""
    first = path if isinstance(path, Path) else path(0)
    check_folder(first.parent)
    try:
        with claimed(path, count) as claims:
            yield claims
    except CannotWrite:
        raise
    except SourceFailed as error:
        raise (error.__cause__ or error) from None
    except verify.Damaged as error:
        raise CannotWrite(f"cannot write {first}: {error}; nothing is saved") from error
    except OSError as error:
        raise CannotWrite(f"cannot write {first}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Why the system or libav failed, and what to do where that is known."""
    return REASONS.get(error.errno or 0) or error.strerror or str(error)


def write_frame(path: Path, frame: torch.Tensor, tags: dict | None = None) -> Path:
    """Write one frame [H, W, C] in [0, 1] as an image of the suffix's format, with tags inside."""
    (written,) = write_frames(path, frame[None], path.suffix.removeprefix("."), tags)
    return written


def write_frames(
    path: Path | Names, frames: torch.Tensor, format: str = "png", tags: dict | None = None
) -> Iterator[Path]:
    """Write frames [n, H, W, C] in [0, 1] as images; png and webp keep alpha. Else as :func:`write_images`."""
    check_frames(frames)
    alpha = frame_format(format).alpha
    if has_alpha(frames) and not alpha:
        logger.warning("%s holds no alpha: the images are saved without it", format)
    return write_images(path, (to_bytes(frame, alpha) for frame in frames), len(frames), format, tags)


def write_images(
    path: Path | Names, images: Iterable[np.ndarray], count: int, format: str = "png", tags: dict | None = None
) -> Iterator[Path]:
    """Write ``count`` images, uint8 [H, W, C], with tags inside; yields the path of each as it is written.

    ``path``: as for :func:`write_video`, for consecutive names. Raises CannotWrite where the disk fails.
    """
    kind = frame_format(format)
    texts = _tags_within(kind, format, tagging.as_text(tags or {}))
    with _claimed(path, count) as claims:
        for claim, pixels in zip(claims, images):
            _write_image(claim.part, pixels, kind, texts)
            yield claim.publish()


def _tags_within(kind: FrameFormat, format: str, texts: dict[str, str]) -> dict[str, str]:
    """The tags that a format has room for; the log says what is left out."""
    kept = texts if kind.tag_limit is None else tagging.within(texts, kind.tag_limit)
    if missing := texts.keys() - kept.keys():
        logger.warning(
            "a %s file holds %d bytes of tags: saved without %s; png and webp hold all of it",
            format,
            kind.tag_limit,
            " and ".join(sorted(missing)),
        )
    return kept


def _write_image(part: Path, pixels: np.ndarray, kind: FrameFormat, texts: dict[str, str]) -> None:
    """Encode in memory, so that a failing disk gives its own reason; then write and read back.

    No view of the buffer is made: an error's traceback would hold it, and Python 3.12.0 and 3.12.1 crash when
    their garbage collector frees such a view (python/cpython issue 111049).
    """
    from PIL import Image

    image, buffer = Image.fromarray(pixels), io.BytesIO()
    try:
        image.save(buffer, kind.name, **dict(kind.options), **tagging.image_options(kind.name, texts))
    except ValueError as error:  # a size that the format does not have
        raise OSError(f"Pillow's {kind.name} failed: {error}") from error
    part.write_bytes(buffer.getvalue())
    verify.check_image(part, image.size)
