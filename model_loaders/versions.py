"""The libraries that the pack needs: the oldest version of each that its tests ran with, and what it is for.

ComfyUI installs a pack into a Python that other packs share, and a clone is not installed at all: what is there may
be older than pyproject.toml asks for. Loaders ask here first, so that a person reads what to upgrade and not that a
class has no attribute.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata


class UnusableLibrary(RuntimeError):
    """A library is missing or too old: which one, what needs it, and the command that installs it."""


@dataclass(frozen=True)
class Library:
    """A distribution by its name in the package index, the least version, the module, and what it is for."""

    name: str
    least: str
    module: str
    purpose: str


REQUIRED = (
    Library("torch", "2.6.0", "torch", "every model"),
    Library("diffusers", "0.38.0", "diffusers", "SANA's transformers, VAEs and ControlNets"),
    Library("transformers", "4.54.0", "transformers", "the Gemma-2 text encoder"),
    Library("tokenizers", "0.21.0", "tokenizers", "the text encoder's tokenizer"),
    Library("safetensors", "0.8.0", "safetensors", "reading weight files"),
    Library("einops", "0.7.0", "einops", "reordering tensors"),
)
"""What every loader needs. pyproject.toml and requirements.txt hold the same bounds."""

INT8 = Library("bitsandbytes", "0.46.0", "bitsandbytes", "weight_dtype int8_bnb")


def installed_version(library: Library) -> str | None:
    """The installed version; None where the module is missing, "" where it is there without a version."""
    try:
        return metadata.version(library.name)
    except metadata.PackageNotFoundError:
        return "" if importlib.util.find_spec(library.module) else None


def release(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: 2.13.0+cpu is (2, 13, 0), 0.42.0.dev0 is (0, 42, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def check_libraries(libraries: Iterable[Library] = REQUIRED) -> None:
    """UnusableLibrary with one message for all that are missing or too old; imports none of them."""
    unusable = [(library, found) for library in libraries if _is_too_old(library, found := installed_version(library))]
    if not unusable:
        return
    problems = [
        f"{library.name} {f'{found} is too old' if found else 'is not installed'}: "
        f"{library.least} or later is needed for {library.purpose}"
        for library, found in unusable
    ]
    raise UnusableLibrary(f"{'; '.join(problems)}. Run {pip_command(lib for lib, _ in unusable)} and start again")


def pip_command(libraries: Iterable[Library]) -> str:
    """The command that installs or upgrades ``libraries`` in the Python that runs this."""
    wanted = " ".join(f'"{library.name}>={library.least}"' for library in libraries)
    return f'"{sys.executable or "python"}" -m pip install --upgrade {wanted}'


def _is_too_old(library: Library, found: str | None) -> bool:
    """Whether a library is missing or older than its bound; a version that cannot be read counts as new enough."""
    return found is None or bool(release(found)) and release(found) < release(library.least)
