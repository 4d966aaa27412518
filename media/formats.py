"""The formats as tables: what libav is told for each video format, and what each file can carry.

Videos are written with PyAV, which ComfyUI installs too, and not by an ffmpeg process: an error has its own
number and sentence, a written file is read back by the same library, sound is padded sample by sample, tags
have any length, and the codec's colour tags are those that were set. PyAV's wheels hold every encoder of the
table; one that an installation lacks takes its format off the list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import gif, webp

logger = logging.getLogger(__name__)

BT709 = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}
"""libavutil's numbers: primaries, transfer and matrix bt709 are each 1, and so is the range tv (16 to 235)."""

TO_BT709 = ("scale", "out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int")
OWN_PALETTE = "a palette for each frame"


@dataclass(frozen=True)
class SoundFormat:
    """The encoder of a container's sound; ``bit_rate`` in bits per second, None where nothing is lost."""

    encoder: str
    bit_rate: int | None = None


@dataclass(frozen=True)
class VideoFormat:
    """One row of the table.

    ``container``, ``encoder``, ``pixels``: libav's names of the file format, the codec and the pixel format.
    ``options``: quality from 1 to 100 to the encoder's options. ``mux``: the container's options.
    ``filters``: (name, arguments) from RGB to ``pixels``, or OWN_PALETTE. ``even``: width and height must
    be even. ``sound``: None where the format has none. ``colour``: the codec's colour tags. ``ticks``: time
    stamps are whole multiples of 1 / ticks seconds. ``fastest``: players show no more frames per second.
    ``finish``: (file, tags, milliseconds) once libav has written the file, where the container's own tags
    do not do. ``plays``: browsers show it.
    """

    suffix: str
    container: str
    encoder: str
    pixels: str
    options: Callable[[int], dict[str, str]]
    mux: tuple[tuple[str, str], ...] = ()
    filters: tuple[tuple[str, str], ...] | str = ()
    even: bool = False
    sound: SoundFormat | None = None
    colour: tuple[tuple[str, int], ...] = ()
    ticks: int | None = None
    fastest: float | None = None
    finish: Callable[[Path, dict[str, str], int], None] | None = None
    plays: bool = True


def _h264(quality: int) -> dict[str, str]:
    return {"preset": "medium", "crf": str(round(40 - 0.27 * quality))}


def _vp9(quality: int) -> dict[str, str]:
    speed = {"deadline": "good", "cpu-used": "4", "row-mt": "1"}
    return {"b": "0", "crf": str(round(55 - 0.35 * quality)), **speed}


def _ffv1(quality: int) -> dict[str, str]:
    return {"level": "3"}


def _gif(quality: int) -> dict[str, str]:
    return {}


def _webp(quality: int) -> dict[str, str]:
    return {"quality": str(quality)}


VIDEO_FORMATS = {
    "mp4-h264": VideoFormat(
        ".mp4",
        "mp4",
        "libx264",
        "yuv420p",
        _h264,
        mux=(("movflags", "+faststart+use_metadata_tags"),),
        filters=(TO_BT709,),
        even=True,
        sound=SoundFormat("aac", 192_000),
        colour=tuple(BT709.items()),
    ),
    "webm-vp9": VideoFormat(
        ".webm",
        "webm",
        "libvpx-vp9",
        "yuv420p",
        _vp9,
        filters=(TO_BT709,),
        even=True,
        sound=SoundFormat("libopus", 128_000),
        colour=tuple(BT709.items()),
    ),
    "mkv-ffv1": VideoFormat(".mkv", "matroska", "ffv1", "bgr0", _ffv1, sound=SoundFormat("flac"), plays=False),
    "gif": VideoFormat(
        ".gif",
        "gif",
        "gif",
        "pal8",
        _gif,
        mux=(("loop", "0"),),
        filters=OWN_PALETTE,
        ticks=100,
        fastest=50,
        finish=gif.finish,
    ),
    "webp": VideoFormat(
        ".webp",
        "webp",
        "libwebp_anim",
        "yuv420p",
        _webp,
        mux=(("loop", "0"),),
        ticks=1000,
        fastest=90,
        finish=webp.finish,
    ),
}
SUFFIXES = tuple(row.suffix for row in VIDEO_FORMATS.values())


def has_encoder(name: str) -> bool:
    """Whether libav, as it is installed here, has an encoder of this name; True where PyAV itself is missing."""
    try:
        from av.codec import Codec
    except ImportError:
        return True  # the saving node says that PyAV is missing; the list of formats is the usual one
    try:
        Codec(name, "w")
    except ValueError:
        return False
    return True


@cache
def available() -> tuple[str, ...]:
    """The formats whose encoders are installed, in the table's order; those left out are named in the log once."""
    missing = {name: row.encoder for name, row in VIDEO_FORMATS.items() if not has_encoder(row.encoder)}
    for name, encoder in missing.items():
        logger.warning("%s is not available: PyAV here has no %s encoder. pip install --upgrade av", name, encoder)
    return tuple(name for name in VIDEO_FORMATS if name not in missing)


@dataclass(frozen=True)
class FrameFormat:
    """A still image's row: Pillow's name and options, whether it holds alpha, and its tags' limit in bytes."""

    suffix: str
    name: str
    options: tuple[tuple[str, int], ...]
    alpha: bool
    tag_limit: int | None = None


FRAME_FORMATS = {
    "png": FrameFormat(".png", "PNG", (("compress_level", 4),), True),
    "jpg": FrameFormat(".jpg", "JPEG", (("quality", 95),), False, 65_533),
    "webp": FrameFormat(".webp", "WEBP", (("quality", 90),), True),
}


def frame_format(name: str) -> FrameFormat:
    """The row of a still format; ValueError names those that there are."""
    if name not in FRAME_FORMATS:
        raise ValueError(f"format is {name!r}; choose one of {', '.join(FRAME_FORMATS)}")
    return FRAME_FORMATS[name]
