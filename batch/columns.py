"""Columns of a table to inputs of a workflow, and a row's cells to values."""

from __future__ import annotations

import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cli.calls import BadCall
from ..cli.workflows import node_called, title, value_of
from .tables import LONGEST_CELL, BadRow

KEY_COLUMNS = ("key", "id")
"""Columns that name a row where --key does not say which."""

LONGEST_KEY = 150
"""Bytes of a key; the names of files are made of it."""

FORBIDDEN = set('<>:"/\\|?*~')
"""Characters that a key cannot have: no file name holds them on every system, or our own names use them."""

RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(1, 10))}
Changes = dict[str, dict[str, Any]]
"""Values by node id and input name."""

SEEDS = ("seed", "noise_seed")
"""Numbers that no check of another node looks at."""

TYPES: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}
SAID = {"INT": "a whole number", "FLOAT": "a number", "STRING": "a text", "BOOLEAN": "true or false"}


@dataclass(frozen=True)
class Target:
    """An input that a column sets: its node, its name, and its kind (a list: its choices; None: not known)."""

    node: str
    name: str
    kind: str | list | None


@dataclass(frozen=True)
class _Facts:
    """Of ``count`` columns: their nodes in order, and their inputs that are one of a list, and no text and no seed."""

    count: int
    nodes: list[str]
    lists: list[tuple[str, str]]
    sizes: list[tuple[str, str]]

    @classmethod
    def of(cls, targets: Mapping[str, Target | None]) -> _Facts:
        found = [target for target in targets.values() if target]
        lists = [(t.node, t.name) for t in found if isinstance(t.kind, list)]
        sizes = [(t.node, t.name) for t in found if t.kind != "STRING" and t.name not in SEEDS]
        return cls(len(targets), sorted({target.node for target in found}), lists, sizes)


@dataclass
class Columns:
    """Which input each column of a table sets; ``declared``: by class name the inputs that INPUT_TYPES tells.

    ``mapped``: NAME=NODE.INPUT of --column; an empty right side leaves the column out. ``texts``: cells are texts.
    """

    graph: Mapping[str, dict]
    declared: Mapping[str, Mapping[str, tuple]]
    mapped: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    texts: bool = False
    targets: dict[str, Target | None] = field(default_factory=dict)
    _known: _Facts | None = None

    def varied(self) -> set[str]:
        """Ids of the nodes that columns set, as far as columns were seen."""
        return {target.node for target in self.targets.values() if target}

    def inputs(self, changes: Changes) -> Changes:
        """All inputs of every node that a column sets: what a row leaves out has the workflow's own value."""
        return {key: {**self.graph[key]["inputs"], **changes.get(key, {})} for key in self._facts().nodes}

    def alike(self, inputs: Changes) -> tuple:
        """What the check of another node may depend on, and a batch: everything but texts and seeds."""
        return tuple(repr(inputs[node].get(name)) for node, name in self._facts().sizes if node in inputs)

    def chosen(self, changes: Changes) -> dict[str, str]:
        """The values of a row that are one of a list, such as files, by NODE.INPUT."""
        values = ((node, name, changes.get(node, {}).get(name)) for node, name in self._facts().lists)
        return {f"{node}.{name}": value for node, name, value in values if isinstance(value, str)}

    def _facts(self) -> _Facts:
        """What follows from the columns that were seen, found again when there is a new one."""
        if self._known is None or self._known.count != len(self.targets):
            self._known = _Facts.of(self.targets)
        return self._known

    def add(self, name: str) -> Target | None:
        """The input of a column, None for one that sets none; BadCall where nothing has its name."""
        if name not in self.targets:
            target = self._target(name)
            twin = next((n for n, other in self.targets.items() if target and _same(other, target)), None)
            if twin is not None:
                raise BadCall(f"the columns {twin!r} and {name!r} set the same input")
            self.targets[name] = target
        return self.targets[name]

    def _target(self, name: str) -> Target | None:
        if name in self.mapped:
            return self._input(name, self.mapped[name]) if self.mapped[name] else None
        if name == self.key or (self.key is None and name in KEY_COLUMNS):
            return None
        return self._input(name, name)

    def _input(self, column: str, path: str) -> Target:
        node_name, dot, key = path.rpartition(".")
        if not dot or not node_name or not key:
            raise BadCall(
                f"the column {column[:100]!r} is not of the form NODE.INPUT: say what it sets with "
                f"--column {column[:100]}=NODE.INPUT, or leave it out with --column {column[:100]}="
            )
        node_id = node_called(self.graph, node_name, f"the column {column[:100]!r}")
        node = self.graph[node_id]
        specs = self.declared.get(node["class_type"], {})
        if specs and key not in specs:
            raise BadCall(
                f"the column {column[:100]!r}: a {title(node)} node has no input {key!r}; "
                f"its inputs are {', '.join(specs) or 'none'}"
            )
        if isinstance(node["inputs"].get(key), list):
            raise BadCall(f"the column {column[:100]!r}: {key} of node {node_id} comes from another node")
        return Target(node_id, key, specs[key][0] if specs else None)

    def changes(self, cells: Mapping[str, Any]) -> Changes:
        """The values of a row; BadRow says which cell is wrong, BadCall which column."""
        found: Changes = {}
        for name, cell in cells.items():
            target = self.add(name)
            if target is not None and not _is_empty(cell, target, self.texts):
                found.setdefault(target.node, {})[target.name] = self._value(name, cell, target)
        return found

    def _value(self, name: str, cell: Any, target: Target) -> Any:
        if isinstance(cell, str) and len(cell) > LONGEST_CELL:
            raise BadRow(f"the cell of {name!r} has {len(cell):,} characters; at most {LONGEST_CELL:,} are read")
        if self.texts:
            return _from_text(name, cell, target)
        return _typed(name, cell, target)

    def key_of(self, cells: Mapping[str, Any], number: int) -> str:
        """The key of a row: its cell in the column of keys, else its number in the table, from 1."""
        name = self.key or next((column for column in KEY_COLUMNS if column in cells), None)
        if name is None or self.mapped.get(name):
            return f"{number:06}"
        if name not in cells:
            raise BadRow(f"it has no column {name!r}, which names the rows")
        cell = cells[name]
        if isinstance(cell, bool) or not isinstance(cell, (str, int)):
            raise BadRow(f"the key in column {name!r} is {str(cell)[:100]!r}; give a text or a whole number")
        return checked_key(str(cell))


def _same(one: Target | None, other: Target) -> bool:
    return one is not None and (one.node, one.name) == (other.node, other.name)


def _is_empty(cell: Any, target: Target, texts: bool) -> bool:
    """A cell that leaves the workflow's own value: none, and in csv an empty one of an input that takes no text."""
    return cell is None or (texts and cell == "" and target.kind != "STRING")


def _from_text(name: str, cell: str, target: Target) -> Any:
    try:
        value = value_of(name, cell, target.kind)
    except BadCall as error:
        raise BadRow(str(error).removeprefix("--set ")) from error
    return _typed(name, value, target)


def _typed(name: str, value: Any, target: Target) -> Any:
    """A value of the type that its input takes; BadRow for another one."""
    if isinstance(value, (list, dict, bytes)):
        raise BadRow(f"{name}: a {type(value).__name__} is not a value of an input")
    types = TYPES.get(target.kind) if isinstance(target.kind, str) else None
    if types is None:
        return value
    if isinstance(value, float) and target.kind == "INT" and value.is_integer():
        return int(value)
    if isinstance(value, bool) != (target.kind == "BOOLEAN") or not isinstance(value, types):
        raise BadRow(f"{name} is {str(value)[:100]!r}; give {SAID[str(target.kind)]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"{name} is {value}; give a finite number")
    return value


def checked_key(key: str) -> str:
    """A key that files on every system can be named after; BadRow for another one."""
    wrong = sorted({c for c in key if c in FORBIDDEN or not c.isprintable()})
    if wrong:
        raise BadRow(f"the key {key[:100]!r} has {', '.join(map(repr, wrong[:5]))}, which no file name can hold")
    if not key or key != key.strip() or key[0] == "." or key[-1] == "." or key.split(".")[0].lower() in RESERVED:
        raise BadRow(f"the key {key[:100]!r} cannot be a file's name")
    if key.lower() == "manifest":
        raise BadRow(f"the key {key!r} is the name of the manifest")
    if len(os.fsencode(key)) > LONGEST_KEY:
        raise BadRow(f"the key {key[:100]!r}… has {len(os.fsencode(key))} bytes; at most {LONGEST_KEY}")
    return key


def folded(key: str) -> bytes:
    """A key as file systems compare names that take capitals and small letters for the same."""
    return unicodedata.normalize("NFC", key).casefold().encode()


def digest(value: object) -> str:
    """A hash of what can be JSON: 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def inputs_hash(changes: Changes, files: Mapping[str, str], folders: Iterable[Path]) -> str:
    """The hash of a row's values; of ``files``, which it may name, size and the time of the last change count too."""
    pairs = ((name, _stamp(folder / value)) for name, value in files.items() for folder in folders)
    stamps = {name: stamp for name, stamp in pairs if stamp}
    return digest([changes, stamps] if stamps else [changes])


def _stamp(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]
