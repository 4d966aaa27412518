"""What a template is made of: a graph in API format, and where its nodes lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ... import NODE_CLASS_MAPPINGS
from .core import CORE

NOTE = "note"
"""What a group calls the template's note."""

MODEL, PROMPT, IMAGE, SAMPLE, RESULT = "#3f789e", "#88aa88", "#b58b2a", "#a1309b", "#8888aa"
"""The colours of groups, by what they hold."""


@dataclass(frozen=True)
class Model:
    """A published file: its name in the loader's list, its address, and the folder of models where it goes."""

    name: str
    url: str
    directory: str


@dataclass(frozen=True)
class Group:
    """A titled rectangle in one of two rows; ``columns``: the ids of its nodes from top to bottom, by column.

    Columns are numbered across the whole workflow, so that what lies in one column has one width. ``both``: it is as
    high as the two rows, and has its columns to itself.
    """

    title: str
    colour: str
    row: int
    columns: Mapping[int, tuple[str, ...]]
    both: bool = False


@dataclass(frozen=True)
class Template:
    """A workflow. ``graph``: API format; ``own``: nodes that are there but off, for a person's own files.

    ``models``: published files by the id of the node that loads each. ``demo``: it runs on the demo weights as it is.
    """

    title: str
    graph: Mapping[str, dict]
    groups: tuple[Group, ...]
    note: str
    own: Mapping[str, dict] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    demo: bool = True


@dataclass(frozen=True)
class App:
    """A template in the editor's App mode: ``inputs``, each (node id, input), and nodes whose files are the results."""

    template: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Blueprint:
    """Nodes of a template as one node, a subgraph: ids by column from top to bottom.

    ``inputs``: the one node's inputs by name, each (node id, input); ``outputs``: by name, each (node id, number).
    """

    title: str
    template: str
    columns: tuple[tuple[str, ...], ...]
    inputs: Mapping[str, tuple[str, str]]
    outputs: Mapping[str, tuple[str, int]]
    description: str


def kinds_of(class_type: str) -> dict[str, str]:
    """A class's inputs in order: the type of each, COMBO for a list."""
    if class_type in CORE:
        return CORE[class_type].inputs
    return {key: spec[0] if isinstance(spec[0], str) else "COMBO" for key, spec in declared(class_type).items()}


def declared(class_type: str) -> dict[str, tuple]:
    """What one of our classes declares of its inputs, in order."""
    found = NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES()
    return {**found["required"], **found.get("optional", {})}


def outputs_of(class_type: str) -> tuple[list[str], list[str]]:
    """The types of a class's outputs, and their names."""
    if class_type in CORE:
        return CORE[class_type].outputs, CORE[class_type].names or CORE[class_type].outputs
    cls = NODE_CLASS_MAPPINGS[class_type]
    return list(cls.RETURN_TYPES), list(getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES))


def node(class_type: str, title: str | None = None, **given) -> dict:
    """A node in API format, as the editor exports it: every widget has its value, a default where none is given."""
    inputs = {}
    for key, kind in kinds_of(class_type).items():
        if key in given:
            inputs[key] = list(given.pop(key)) if is_link(given.get(key)) else given.pop(key)
        elif not is_socket(kind):
            inputs[key] = _default(class_type, key)
    if given:
        raise ValueError(f"{class_type} has no input {', '.join(given)}")
    return {"inputs": inputs, "class_type": class_type, "_meta": {"title": title or display_name(class_type)}}


def _default(class_type: str, key: str):
    if class_type in CORE:
        return CORE[class_type].defaults[key]
    kind, options = declared(class_type)[key]
    return options.get("default", kind[0] if isinstance(kind, list) else "")


def display_name(class_type: str) -> str:
    if class_type in CORE:
        return CORE[class_type].title
    return NODE_CLASS_MAPPINGS[class_type].DISPLAY_NAME


def is_link(value) -> bool:
    """Whether an input comes from another node: (id, output number)."""
    return isinstance(value, (list, tuple))


def is_socket(kind: str) -> bool:
    """Whether an input of a type has no widget."""
    return kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
