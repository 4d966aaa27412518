"""Who runs the graph: a real ComfyUI, or the small embedded host. The nodes know this contract alone."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .contract import Host, Sampling, SaveTarget

__all__ = ["NAMES", "Host", "Sampling", "SaveTarget", "current", "serve", "use"]

NAMES = ("comfyui", "embedded")

_current: Host | None = None


def current() -> Host:
    """The host in force: the one chosen with :func:`use`, else ComfyUI where we run inside it."""
    if _current is None:
        return use("comfyui" if "comfy.model_management" in sys.modules else "embedded")
    return _current


def serve(facts: Callable[[str, str, str], dict]) -> None:
    """Tell ComfyUI's server of the pack's route (``facts``: nodes.describing.describe), where there is a server."""
    if "comfy.model_management" in sys.modules:
        from .comfyui import routes

        routes.register(facts)


def use(name: str) -> Host:
    """Choose the host for this process."""
    global _current
    chosen: Host
    if name == "comfyui":
        from .comfyui.bridge import ComfyHost

        chosen = ComfyHost()
    elif name == "embedded":
        from .embedded.bridge import EmbeddedHost

        chosen = EmbeddedHost()
    else:
        raise ValueError(f"host is {name!r}; choose one of {', '.join(NAMES)}")
    _current = chosen
    return chosen
