"""What the loaders' chosen files are, for the page: families, parameters, dtypes and memory, from headers alone."""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path

from .. import host
from ..model_loaders.files import facts, folders
from .rules import named_model


def describe(node: str, name: str, weight_dtype: str = "default") -> dict:
    """``parts``: a row of label, parameters, dtype and bytes in memory for each model; or ``error``.

    With ``missing`` if there is no such file.
    """
    try:
        return {"parts": [_row(part, weight_dtype) for part in _parts(node, named_model(node, name))]}
    except KeyError:
        return {"error": f"{node[:100]} loads no file"}
    except FileNotFoundError as error:
        return {"error": str(error), "missing": True}
    except (OSError, ValueError) as error:
        return {"error": str(error)}


def announced(cls: type) -> type:
    """A loader that says what it loads while it does: the first one after a start imports its libraries too."""
    if cls.__name__ not in folders.LOADERS:
        return cls
    load, named = getattr(cls, cls.FUNCTION), folders.LOADERS[cls.__name__][0]  # type: ignore[attr-defined]
    inputs = inspect.signature(load)

    @functools.wraps(load)
    def loading(self, *args, **kwargs):
        name = inputs.bind_partial(self, *args, **kwargs).arguments.get(named, "")
        first = "" if "diffusers" in sys.modules else "; this first time with diffusers and transformers"
        host.current().status(f"loading {name}{first}")
        try:
            return load(self, *args, **kwargs)
        finally:
            host.current().status("")

    setattr(cls, cls.FUNCTION, loading)  # type: ignore[attr-defined]
    return cls


def _parts(node: str, path: Path) -> list[Path]:
    return [path / part for part in facts.PARTS] if node == "SanaLoadPipeline" else [path]


def _row(path: Path, weight_dtype: str) -> dict:
    found = facts.facts_of(path)
    return {
        "label": label(found),
        "parameters": found.parameters,
        "dtype": found.dtype if weight_dtype == "default" else weight_dtype,
        "memory": found.memory(weight_dtype),
    }


def label(found: facts.Facts) -> str:
    """A kind as people call it, such as SANA-Sprint 1.6B; "" if the header does not tell."""
    if found.kind is None:
        return ""
    name = found.kind.label.removesuffix(" transformer").removesuffix(" text encoder")
    return f"{name} {amount(found.parameters)}"


def amount(parameters: int) -> str:
    """0.6B, 1.6B, 2B or 12M."""
    if parameters >= 5e8:
        return f"{parameters / 1e9:.1f}B".replace(".0B", "B")
    return f"{parameters / 1e6:.0f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}K"
