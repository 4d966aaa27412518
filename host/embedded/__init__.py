"""Our nodes without ComfyUI: one model on the device at a time, and an executor of API-format graphs."""

from __future__ import annotations

from .bridge import EmbeddedHost

__all__ = ["EmbeddedHost"]
