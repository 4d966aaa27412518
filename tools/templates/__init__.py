"""The example workflows: one source for the editor's graphs and their API twins (tools/workflows.py writes both)."""

from __future__ import annotations

from functools import cache

from .source import Group, Model, Template, node


@cache
def templates() -> dict[str, Template]:
    """Every example by the name of its API twin. A template's title is the name of its file in the editor's format."""
    from . import images, long_videos, published, videos

    return {**images.templates(), **videos.templates(), **long_videos.templates(), **published.templates()}


__all__ = ["Group", "Model", "Template", "node", "templates"]
