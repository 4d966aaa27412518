"""Workflow files in API format, and the settings that change them."""

from __future__ import annotations

import json
from pathlib import Path

from .calls import BadCall


def read_workflow(path: Path) -> dict:
    """An API-format graph from a file; BadCall says how to make one of anything else."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCall(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadCall(f"{path} is not JSON: {error}") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise BadCall(
            f"{path} is a workflow in the editor's format; in ComfyUI choose Workflow > Export (API) "
            "and give the file that it saves"
        )
    if isinstance(graph, dict) and isinstance(graph.get("prompt"), dict):
        graph = graph["prompt"]
    if not isinstance(graph, dict) or not all(isinstance(node, dict) for node in graph.values()):
        raise BadCall(f"{path} is not a workflow: an object of nodes in API format was expected")
    return graph


def apply_settings(graph: dict, settings: list[str]) -> None:
    """Apply ``NODE.INPUT=VALUE`` texts to a graph in place; NODE is an id or a title."""
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, key = target.rpartition(".")
        if not equals or not dot or not name or not key:
            raise BadCall(f"--set {setting!r} is not of the form NODE.INPUT=VALUE")
        inputs = graph[_node_called(graph, name)].setdefault("inputs", {})
        inputs[key] = text if isinstance(inputs.get(key), str) else _value(text)


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _node_called(graph: dict, name: str) -> str:
    if name in graph:
        return name
    titled = [i for i, node in graph.items() if node.get("_meta", {}).get("title", node.get("class_type")) == name]
    if len(titled) == 1:
        return titled[0]
    if titled:
        raise BadCall(f"--set {name}: the nodes {', '.join(titled)} all have this title; use an id")
    known = ", ".join(
        f"{i} ({node.get('_meta', {}).get('title', node.get('class_type'))})" for i, node in graph.items()
    )
    raise BadCall(f"--set {name}: no node has this id or title; the workflow has {known}")
