"""Sana Nodes: NVIDIA's SANA models in ComfyUI."""

from __future__ import annotations

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
__version__ = "0.1.0"


def __getattr__(name: str):
    """The node maps, imported when they are asked for: they need torch, and the command line's help does not."""
    if name not in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import nodes

    return getattr(nodes, name)
