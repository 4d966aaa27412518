"""Workflow files in API format, and the settings that change them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model_loaders.files.nesting import DEEPEST, is_shallow
from .calls import BadCall

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read_workflow(path: Path) -> dict[str, dict]:
    """An API-format graph from a file: node id to an object with a ``class_type`` text and an ``inputs`` object.

    BadCall says what is wrong with a file that holds anything else.
    """
    try:
        graph = parse_json(path.read_bytes())
    except OSError as error:
        raise BadCall(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise BadCall(f"{path} is not JSON: {reason}") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise BadCall(
            f"{path} is a workflow in the editor's format; in ComfyUI choose Workflow > Export (API) "
            "and give the file that it saves"
        )
    wrapped = graph.get("prompt") if isinstance(graph, dict) else None
    graph = wrapped if isinstance(wrapped, dict) and "class_type" not in wrapped else graph
    if not isinstance(graph, dict):
        raise BadCall(f"{path} is not a workflow: an object of nodes in API format was expected")
    if not graph:
        raise BadCall(f"{path} has no nodes")
    return {node_id: _checked(path, node_id, node) for node_id, node in graph.items()}


def parse_json(data: bytes):
    """JSON as the standard has it: no NaN, and no key twice in one object, of which one would be lost."""
    text = data.decode(json.detect_encoding(data))
    return json.loads(text, parse_constant=_refuse_constant, parse_int=_whole_number, object_pairs_hook=_unique)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a number in JSON")


def _whole_number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"a number in it has {len(digits)} digits") from None


def _unique(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:100]!r} occurs twice")
    return found


def _checked(path: Path, node_id: str, node: object) -> dict:
    """A node whose parts have the types that an executor relies on; BadCall where one has not."""
    where = f"{path}: node {node_id[:100]}"
    if not isinstance(node, dict):
        raise BadCall(f"{path} is not a workflow: node {node_id[:100]} is not an object in API format")
    if "class_type" not in node:
        raise BadCall(f"{where} has no class_type; save the workflow in API format (Workflow > Export (API))")
    if not isinstance(node["class_type"], str):
        raise BadCall(f"{where}: class_type is not a text")
    if not isinstance(node.get("inputs", {}), dict):
        raise BadCall(f"{where}: inputs is not an object")
    if not is_shallow(node):
        raise BadCall(f"{where}: its values are nested more than {DEEPEST} deep")
    meta = {"_meta": node["_meta"]} if isinstance(node.get("_meta"), dict) else {}
    return {"inputs": {}, **{key: value for key, value in node.items() if key != "_meta"}, **meta}


def title(node: Mapping) -> str:
    """What the canvas calls a node: its title, else its class."""
    return str(node.get("_meta", {}).get("title", node["class_type"]))


def declared_inputs(graph: Mapping, classes: Mapping[str, Any]) -> dict[str, dict[str, tuple]]:
    """The inputs of the graph's node classes, as far as those are known: by class name, name to its declaration."""
    found = {}
    for name in {node["class_type"] for node in graph.values()} & set(classes):
        inputs = classes[name].INPUT_TYPES()
        found[name] = {**inputs.get("required", {}), **inputs.get("optional", {})}
    return found


def apply_settings(graph: dict, settings: list[str], declared: Mapping[str, Mapping[str, tuple]]) -> None:
    """Apply ``NODE.INPUT=VALUE`` texts to a graph in place; NODE is an id or a title.

    ``declared``: by class name the inputs of the classes that are known, name to what INPUT_TYPES says of it. A
    value becomes what its input takes, so that 1984 stays a text where a text is asked for.
    """
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, key = target.rpartition(".")
        if not equals or not dot or not name or not key:
            raise BadCall(f"--set {setting!r} is not of the form NODE.INPUT=VALUE")
        node = graph[node_called(graph, name, f"--set {name}")]
        specs = declared.get(node["class_type"])
        if specs is not None and key not in specs:
            inputs = ", ".join(specs) or "none"
            raise BadCall(f"--set {target}: a {title(node)} node has no input {key!r}; its inputs are {inputs}")
        kind = specs[key][0] if specs else _kind_of(node["inputs"].get(key))
        node["inputs"][key] = value_of(target, text, kind)


def _kind_of(value: object) -> str | None:
    """The kind of a widget, by the value that it has."""
    kinds = {str: "STRING", bool: "BOOLEAN", int: "INT", float: "FLOAT"}
    return kinds.get(type(value))


def value_of(target: str, text: str, kind: str | list | None) -> object:
    """A text as a value for an input of a kind (a list: its choices); what cannot be one is left for the check."""
    if kind == "STRING":
        return text
    if isinstance(kind, list):
        return next((option for option in kind if str(option) == text), text)
    if kind == "BOOLEAN" and text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    value = _json_or_text(target, text)
    if kind == "BOOLEAN" and not isinstance(value, list):
        raise BadCall(f"--set {target}={text[:100]}: give true or false")
    return value


def _json_or_text(target: str, text: str) -> object:
    """The value of a JSON text, any other text as it is; BadCall where the value is nested too deep."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    except RecursionError:  # at 1000 levels up to Python 3.12, at 10,000 from 3.13
        shallow = False
    else:
        shallow = is_shallow(value)
    if not shallow:
        raise BadCall(f"--set {target}: the value is nested more than {DEEPEST} deep")
    return value


def node_called(graph: Mapping, name: str, where: str) -> str:
    """The id of the node with an id or a title; BadCall, which begins with ``where``, if not one node has it."""
    if name in graph:
        return name
    titled = [node_id for node_id, node in graph.items() if title(node) == name]
    if len(titled) == 1:
        return titled[0]
    if titled:
        raise BadCall(f"{where}: the nodes {', '.join(titled)} all have this title; use an id")
    known = ", ".join(f"{node_id} ({title(node)})" for node_id, node in list(graph.items())[:30])
    raise BadCall(f"{where}: no node has this id or title; the workflow has {known}")
