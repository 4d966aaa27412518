"""The sizes that SANA was trained on: diffusers' tables of bins, by the ratio of height to width."""

from __future__ import annotations

from functools import cache
from importlib import import_module

_TABLES = {
    "1024px": ("pixart_alpha.pipeline_pixart_alpha", "ASPECT_RATIO_1024_BIN"),
    "512px": ("pixart_alpha.pipeline_pixart_alpha", "ASPECT_RATIO_512_BIN"),
    "2048px": ("pixart_alpha.pipeline_pixart_sigma", "ASPECT_RATIO_2048_BIN"),
    "4096px": ("sana.pipeline_sana", "ASPECT_RATIO_4096_BIN"),
    "video 480p": ("sana_video.pipeline_sana_video", "ASPECT_RATIO_480_BIN"),
    "video 720p": ("sana_video.pipeline_sana_video", "ASPECT_RATIO_720_BIN"),
}
"""The module under diffusers.pipelines and the name of the table for each resolution."""

BIN_NAMES = tuple(_TABLES)


@cache
def bins_of(name: str) -> dict[float, tuple[int, int]]:
    """Ratio of height to width to (width, height) in pixels. Imports diffusers."""
    module, table = _TABLES[name]
    bins = getattr(import_module(f"diffusers.pipelines.{module}"), table)
    return {float(ratio): (int(width), int(height)) for ratio, (height, width) in bins.items()}


def nearest_size(width: int, height: int, bins: str) -> tuple[int, int]:
    """The trained (width, height) nearest in aspect ratio (diffusers' classify_height_width_bin)."""
    if bins not in BIN_NAMES:
        raise ValueError(f"bins is {bins!r}; choose one of {', '.join(BIN_NAMES)}")
    if width < 1 or height < 1:
        raise ValueError(f"the size is {width} x {height}; give a width and a height of at least 1")
    ratio, table = height / width, bins_of(bins)
    return table[min(table, key=lambda known: abs(known - ratio))]
