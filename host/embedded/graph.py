"""Check and run API-format workflows made of our nodes and a few core ones."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .core_nodes import CORE_NODES
from .folders import Folders


class BadWorkflow(ValueError):
    """A workflow that cannot be run: found before any node ran."""


class NodeFailed(RuntimeError):
    """A node raised: which one, of which class, and what it said."""

    def __init__(self, node_id: str, class_type: str, error: BaseException):
        super().__init__(f"node {node_id} ({class_type}): {error}")
        self.node_id, self.class_type, self.error = node_id, class_type, error


@dataclass
class Outcome:
    """What a run saved, by node id, and the values of every node."""

    saved: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, tuple] = field(default_factory=dict)


def check(graph: Mapping, classes: Mapping[str, type]) -> list[str]:
    """Raise BadWorkflow for a graph that cannot run; else its node ids in an order that can."""
    if not graph:
        raise BadWorkflow("the workflow has no nodes")
    known = {**CORE_NODES, **classes}
    for node_id, node in graph.items():
        _check_node(node_id, node, graph, known)
    order = _order(graph)
    if not any(getattr(known[graph[n]["class_type"]], "OUTPUT_NODE", False) for n in graph):
        raise BadWorkflow("the workflow saves nothing: add a SaveImage node")
    return order


def _check_node(node_id: str, node: object, graph: Mapping, known: Mapping[str, type]) -> None:
    if not isinstance(node, Mapping) or "class_type" not in node:
        raise BadWorkflow(
            f"node {node_id} has no class_type; save the workflow in API format (Workflow > Export (API))"
        )
    name = node["class_type"]
    if name not in known:
        raise BadWorkflow(
            f"node {node_id} is a {name}, which is neither a Sana node nor one of the core nodes known without ComfyUI "
            f"({', '.join(CORE_NODES)}); run the workflow with ComfyUI (--host comfyui)"
        )
    cls, given = known[name], node.get("inputs", {})
    required, optional = declared_inputs(cls)
    for key in given:
        if key not in required and key not in optional:
            choices = ", ".join([*required, *optional]) or "none"
            raise BadWorkflow(f"node {node_id} ({name}) has no input {key!r}; its inputs are {choices}")
    for key in required:
        if key not in given:
            raise BadWorkflow(f"node {node_id} ({name}) lacks its input {key!r}")
    checked_by_node = _validated_names(cls)
    for key, value in given.items():
        spec = required.get(key) or optional[key]
        if is_link(value):
            _check_link(node_id, name, key, value, spec, graph, known)
        else:
            _check_value(f"node {node_id} ({name}): {key}", value, spec, listed=key not in checked_by_node)
    _ask_node(node_id, name, cls, given, checked_by_node)


def declared_inputs(cls: type) -> tuple[dict, dict]:
    """A class's required and optional inputs."""
    declared = cls.INPUT_TYPES()
    return declared.get("required", {}), declared.get("optional", {})


def is_link(value: object) -> bool:
    """Whether an input's value is another node's output, ``[node id, output number]``."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _check_link(node_id, name, key, link, spec, graph, known) -> None:
    source, number = link
    where = f"node {node_id} ({name}): {key}"
    if source not in graph:
        raise BadWorkflow(f"{where} comes from node {source}, which is not in the workflow")
    outputs = known.get(graph[source].get("class_type"), CORE_NODES["SaveImage"]).RETURN_TYPES
    if not 0 <= number < len(outputs):
        raise BadWorkflow(f"{where} comes from output {number} of node {source}, which has {len(outputs)}")
    wanted = spec[0] if isinstance(spec[0], str) else "COMBO"
    if outputs[number] != wanted:
        raise BadWorkflow(f"{where} takes {wanted}, and output {number} of node {source} is {outputs[number]}")


def _check_value(where: str, value: object, spec: tuple, listed: bool) -> None:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if not isinstance(kind, str):
        if listed and value not in kind:
            raise BadWorkflow(
                f"{where} is {value!r}; choose one of {', '.join(map(str, kind)) or 'nothing: none found'}"
            )
        return
    types = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}.get(kind)
    if types is None:
        raise BadWorkflow(f"{where} must come from another node's {kind} output, not be {value!r}")
    if not isinstance(value, types) or (kind in ("INT", "FLOAT") and isinstance(value, bool)):
        raise BadWorkflow(f"{where} is {value!r}; give a {kind}")
    if kind in ("INT", "FLOAT"):
        low, high = options.get("min", -math.inf), options.get("max", math.inf)
        if math.isnan(value) or not low <= value <= high:
            raise BadWorkflow(f"{where} is {value}; give a number from {low} to {high}")


def _validated_names(cls: type) -> set[str]:
    check_inputs = getattr(cls, "VALIDATE_INPUTS", None)
    return set(inspect.signature(check_inputs).parameters) if check_inputs else set()


def _ask_node(node_id, name, cls, given, names) -> None:
    """A node's own VALIDATE_INPUTS, with the inputs that no other node gives, as ComfyUI calls it."""
    if not names:
        return
    said = cls.VALIDATE_INPUTS(**{key: given[key] for key in names if key in given and not is_link(given[key])})
    if said is not True:
        raise BadWorkflow(f"node {node_id} ({name}): {said}")


def _order(graph: Mapping) -> list[str]:
    order: list[str] = []
    state: dict[str, str] = {}

    def visit(node_id: str, path: list[str]) -> None:
        if state.get(node_id) == "done":
            return
        if state.get(node_id) == "open":
            cycle = " -> ".join([*path[path.index(node_id) :], node_id])
            raise BadWorkflow(f"the workflow runs in a circle: {cycle}")
        state[node_id] = "open"
        for value in graph[node_id].get("inputs", {}).values():
            if is_link(value):
                visit(value[0], [*path, node_id])
        state[node_id] = "done"
        order.append(node_id)

    for node_id in graph:
        visit(node_id, [])
    return order


def run(
    graph: Mapping, classes: Mapping[str, type], folders: Folders, started: Callable[[str, str], None] | None = None
):
    """Run a whole workflow; ``started(node id, class)`` is called before each node. Returns an Outcome."""
    known, outcome = {**CORE_NODES, **classes}, Outcome()
    for node_id in check(graph, classes):
        node = graph[node_id]
        cls = known[node["class_type"]]
        if started:
            started(node_id, node["class_type"])
        try:
            result = _call(cls, node.get("inputs", {}), outcome.values, folders, graph)
        except Exception as error:
            raise NodeFailed(node_id, node["class_type"], error) from error
        if isinstance(result, Mapping):
            shown = result.get("ui", {})
            outcome.saved[node_id] = [*shown.get("images", []), *shown.get("files", [])]
            result = result.get("result", ())
        outcome.values[node_id] = tuple(result)
    return outcome


def _call(cls: type, given: Mapping, values: Mapping[str, tuple], folders: Folders, graph: Mapping):
    arguments = {key: values[v[0]][v[1]] if is_link(v) else v for key, v in given.items()}
    hidden = {"FOLDERS": folders, "PROMPT": graph}
    for key, kind in cls.INPUT_TYPES().get("hidden", {}).items():
        arguments[key] = hidden.get(kind)
    return getattr(cls(), cls.FUNCTION)(**arguments)
