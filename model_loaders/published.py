"""The published models by short names: published.json.

Each row: name, repository on the Hugging Face hub, the kind of model folder it goes into, what it is, and where a
repository holds more than is needed, the ``variant`` or ``folder`` to take; a ``revision`` pins it to a commit.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "published.json"


@dataclass(frozen=True)
class Published:
    """One row of the table."""

    name: str
    repository: str
    kind: str
    what: str
    variant: str | None = None
    folder: str | None = None
    revision: str | None = None


@cache
def published() -> tuple[Published, ...]:
    """The table's rows."""
    return tuple(Published(**row) for row in json.loads(TABLE.read_text(encoding="utf-8")))


def how_to_get(name: str) -> str | None:
    """The command that downloads what a file name or folder name asks for; None where it is not a published model.

    Besides the short names it takes the last part of a repository's name, as a clone of it is called.
    """
    first = name.replace("\\", "/").split("/")[0].removesuffix(".safetensors").lower()
    rows = (row for row in published() if first in (row.name.lower(), row.repository.split("/")[-1].lower()))
    return next((f"{_command()} get {row.name}" for row in rows), None)


def _command() -> str:
    """``sana-nodes``, or where the pack is a folder in custom_nodes and not installed, this Python and the folder."""
    return "sana-nodes" if shutil.which("sana-nodes") else f'"{sys.executable or "python"}" "{TABLE.parents[1]}"'
