"""The video formats as a table: what ffmpeg is told for each, and what the file can carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import tags

BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")
TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"
OWN_PALETTE = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"


@dataclass(frozen=True)
class VideoFormat:
    """One row of the table.

    ``arguments``: quality from 1 to 100 to ffmpeg's output options. ``even``: width and height must be
    even. ``audio``: options for sound, None where the format has none. ``tags``: "container" where
    ffmpeg writes them, else a function that puts them into the finished file. ``plays``: browsers show it.
    """

    suffix: str
    arguments: Callable[[int], tuple[str, ...]]
    even: bool
    audio: tuple[str, ...] | None
    tags: str | Callable[[Path, dict[str, str]], None]
    plays: bool = True


def _h264(quality: int) -> tuple[str, ...]:
    options = ("-c:v", "libx264", "-preset", "medium", "-crf", str(round(40 - 0.27 * quality)))
    return (*options, "-vf", TO_BT709, "-pix_fmt", "yuv420p", *BT709, "-movflags", "+faststart+use_metadata_tags")


def _vp9(quality: int) -> tuple[str, ...]:
    options = ("-c:v", "libvpx-vp9", "-b:v", "0", "-crf", str(round(55 - 0.35 * quality)))
    speed = ("-deadline", "good", "-cpu-used", "4", "-row-mt", "1")
    return (*options, *speed, "-vf", TO_BT709, "-pix_fmt", "yuv420p", *BT709)


def _ffv1(quality: int) -> tuple[str, ...]:
    return ("-c:v", "ffv1", "-level", "3", "-pix_fmt", "gbrp")


def _gif(quality: int) -> tuple[str, ...]:
    return ("-filter_complex", OWN_PALETTE, "-loop", "0")


def _webp(quality: int) -> tuple[str, ...]:
    return ("-c:v", "libwebp_anim", "-quality", str(quality), "-loop", "0", "-pix_fmt", "yuv420p")


VIDEO_FORMATS = {
    "mp4-h264": VideoFormat(".mp4", _h264, True, ("-c:a", "aac", "-b:a", "192k"), "container"),
    "webm-vp9": VideoFormat(".webm", _vp9, True, ("-c:a", "libopus", "-b:a", "128k"), "container"),
    "mkv-ffv1": VideoFormat(".mkv", _ffv1, False, ("-c:a", "flac"), "container", plays=False),
    "gif": VideoFormat(".gif", _gif, False, None, tags.into_gif),
    "webp": VideoFormat(".webp", _webp, False, None, tags.into_webp),
}

FRAME_FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}
