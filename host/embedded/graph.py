"""Check and run API-format workflows made of our nodes and a few core ones, as ComfyUI's executor does.

What ComfyUI converts is converted, what it ignores is ignored, and nodes that no output needs are neither
checked nor run. What would fail there when it runs (a NaN, a MODEL that is a number) is refused before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .. import before_run
from .core_nodes import CORE_NODES
from .folders import Folders
from .values import Declaration, converted, node_problem, short

MOST_PROBLEMS = 20
"""Problems of one workflow that are told."""


class BadWorkflow(ValueError):
    """A workflow that cannot be run, found before any node ran: one line for each problem."""


class NodeFailed(RuntimeError):
    """A node raised: which one, what the canvas calls it, and why."""

    def __init__(self, node_id: str, name: str, error: BaseException):
        super().__init__(f"node {node_id} ({name}): {str(error) or type(error).__name__}")
        self.node_id, self.error = node_id, error


@dataclass
class Outcome:
    """What a run saved and what it only previewed, by node id, and the values of every node."""

    saved: dict[str, list[str]] = field(default_factory=dict)
    previews: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, tuple] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A workflow that can run: its nodes with converted inputs, what their classes declare, the order of those
    that an output needs, and notes for a person.
    """

    graph: dict[str, dict]
    declared: dict[str, Declaration]
    order: list[str]
    notes: list[str] = field(default_factory=list)


def known_classes(classes: Mapping[str, type]) -> dict[str, type]:
    """The node classes of this host by name: the core nodes and ``classes``."""
    return {**CORE_NODES, **classes}


def is_link(value: object) -> bool:
    """Whether an input's value is meant as another node's output, ``[node id, output number]``."""
    return isinstance(value, list)


def check(graph: Mapping, classes: Mapping[str, type], folders: Folders | None = None) -> Plan:
    """How to run a graph; BadWorkflow says all that is wrong with it. Makes no file and no folder.

    ``graph``: node id to an object with a ``class_type`` text and an ``inputs`` object.
    """
    nodes = {key: {**node, "inputs": dict(node.get("inputs", {}))} for key, node in graph.items()}
    if not nodes:
        raise BadWorkflow("the workflow has no nodes")
    with before_run.checking(nodes):
        declared = _declarations(nodes, known_classes(classes))
        outputs = [key for key, node in nodes.items() if getattr(declared[key].cls, "OUTPUT_NODE", False)]
        if not outputs:
            raise BadWorkflow("the workflow saves nothing: add a Save Image node")
        plan = Plan(nodes, declared, _order(nodes, outputs, declared))
        _raise_if_any(problem for key in plan.order for problem in _node_problems(key, plan, folders))
    return plan


def _declarations(nodes: Mapping, known: Mapping[str, type]) -> dict[str, Declaration]:
    """What each node's class declares; BadWorkflow for classes that this host does not have."""
    _raise_if_any(
        f"node {key} is a {node['class_type'][:100]}, which is neither a Sana node nor one of the core nodes known "
        f"without ComfyUI ({', '.join(CORE_NODES)}); run the workflow with ComfyUI (--host comfyui)"
        for key, node in nodes.items()
        if node["class_type"] not in known
    )
    by_class = {name: Declaration.of(name, known[name]) for name in {node["class_type"] for node in nodes.values()}}
    return {key: by_class[node["class_type"]] for key, node in nodes.items()}


def _raise_if_any(problems: Iterator[str]) -> None:
    lines = list(dict.fromkeys(problems))
    if len(lines) > MOST_PROBLEMS:
        lines[MOST_PROBLEMS:] = [f"and {len(lines) - MOST_PROBLEMS} more"]
    if lines:
        raise BadWorkflow("\n".join(lines))


def _sources(key: str, nodes: Mapping, declared: Mapping[str, Declaration]) -> Iterator[str]:
    """The nodes that a node's declared inputs come from, as far as their links name one."""
    links = [value for name, value in nodes[key]["inputs"].items() if is_link(value) and declared[key].spec(name)]
    return iter([link[0] for link in links if len(link) == 2 and isinstance(link[0], str)])


def _order(nodes: Mapping, outputs: list[str], declared: Mapping[str, Declaration]) -> list[str]:
    """The nodes that the outputs need, each after its sources. No recursion: a chain may be long."""
    order: list[str] = []
    done: set[str] = set()
    for output in outputs:
        path: dict[str, Iterator[str]] = {} if output in done else {output: _sources(output, nodes, declared)}
        while path:
            key = next(reversed(path))
            source = next((s for s in path[key] if s in nodes and s not in done), None)
            if source is None:
                del path[key]
                done.add(key)
                order.append(key)
            elif source in path:
                circle = [*list(path)[list(path).index(source) :], source]
                raise BadWorkflow(f"the workflow runs in a circle: {_chain(circle)}")
            else:
                path[source] = _sources(source, nodes, declared)
    return order


def _chain(keys: list[str]) -> str:
    return " -> ".join(keys if len(keys) <= 12 else [*keys[:6], "…", *keys[-5:]])


def _node_problems(key: str, plan: Plan, folders: Folders | None) -> Iterator[str]:
    """What is wrong with one node. Its inputs are converted; those that it does not have are noted."""
    declared, inputs, whole = plan.declared[key], plan.graph[key]["inputs"], True
    where = f"node {key} ({declared.name})"
    for name in [*inputs, *(name for name in declared.required if name not in inputs)]:
        try:
            if name not in inputs:
                raise ValueError("is missing; give it a value or connect another node to it")
            if declared.spec(name):
                inputs[name] = _checked(name, inputs[name], declared, plan)
            else:
                plan.notes.append(f"{where}: {_ignored(name, inputs[name], declared)}")
        except ValueError as error:
            whole = False
            yield f"{where}: {name[:100]} {error}"
    if whole:
        given = {name: None if is_link(value) else value for name, value in inputs.items() if declared.spec(name)}
        problem = node_problem(declared, given, hidden_inputs(declared, folders, {}))
        yield from [f"{where}: {problem}"] if problem else []


def _ignored(name: str, value: object, declared: Declaration) -> str:
    """A note of an input that a node does not have; ValueError for a link to it, at which ComfyUI fails later."""
    if is_link(value):
        raise ValueError(f"is not one of its inputs, and another node is connected to it; they are {declared.names()}")
    return f"there is no input {short(name)}, and its value is ignored; the inputs are {declared.names()}"


def _checked(name: str, value: Any, declared: Declaration, plan: Plan) -> object:
    """An input's value as its node takes it, or its link; ValueError says what is wrong."""
    if not is_link(value):
        return converted(name, value, declared)
    _check_link(value, declared.spec(name)[0], plan)
    return value


def _check_link(link: list, kind: str | list, plan: Plan) -> None:
    if len(link) != 2 or not isinstance(link[0], str) or not isinstance(link[1], int):
        raise ValueError(f'is {short(link)}; a link is ["node id", output number]')
    source, number = link
    if source not in plan.graph:
        raise ValueError(f"comes from node {source[:100]}, which is not in the workflow")
    outputs = plan.declared[source].cls.RETURN_TYPES
    if not -len(outputs) <= number < len(outputs):
        raise ValueError(f"comes from output {short(number)} of node {source}, which has {len(outputs)}")
    wanted = kind if isinstance(kind, str) else "COMBO"
    if outputs[number] != wanted:
        raise ValueError(f"takes {wanted}, and output {int(number)} of node {source} is {outputs[number]}")


def hidden_inputs(declared: Declaration, folders: Folders | None, prompt: Mapping | None) -> dict:
    """The hidden inputs of a class that this host knows; the others are None."""
    values = {"FOLDERS": folders, "PROMPT": prompt}
    return {key: values.get(kind) for key, kind in declared.hidden.items()}


def run(
    graph: Mapping,
    classes: Mapping[str, type],
    folders: Folders,
    started: Callable[[str, str], None] | None = None,
    noted: Callable[[str], None] | None = None,
    metadata: bool = True,
) -> Outcome:
    """Run a whole workflow.

    ``started(node id, name)`` is called before each node and ``noted(text)`` for what is ignored; without ``metadata``
    nothing of the workflow is written into files. Raises BadWorkflow before any node runs, NodeFailed after.
    """
    plan = check(graph, classes, folders)
    if noted:
        for note in plan.notes:
            noted(note)
    return perform(plan, folders, started, metadata)


def varied(plan: Plan, inputs: Mapping[str, Mapping[str, Any]], folders: Folders | None = None) -> Plan:
    """A plan with other inputs of some nodes, by node id; BadWorkflow says what is wrong with those.

    ``inputs`` has all inputs of such a node. Its links are those of the plan: the order of the nodes stays.
    """
    changed = {key: {**plan.graph[key], "inputs": dict(values)} for key, values in inputs.items()}
    graph = {**plan.graph, **changed}
    with before_run.checking(graph):
        declared = {**plan.declared, **{key: plan.declared[key].checked_again() for key in changed}}
        new = replace(plan, graph=graph, declared=declared, notes=[])
        _raise_if_any(problem for key in changed for problem in _node_problems(key, new, folders))
    return new


def perform(
    plan: Plan, folders: Folders, started: Callable[[str, str], None] | None = None, metadata: bool = True
) -> Outcome:
    """Run a checked plan, see :func:`run`."""
    outcome, signatures = Outcome(), signatures_of(plan)
    first: dict[str, str] = {}
    for key in plan.order:
        twin = first.setdefault(signatures[key], key)
        if twin != key:
            repeat(twin, key, outcome)
            continue
        if started:
            started(key, plan.declared[key].name)
        run_node(key, plan, outcome, hidden_inputs(plan.declared[key], folders, plan.graph if metadata else None))
    return outcome


def signatures_of(plan: Plan) -> dict[str, str]:
    """What each node's result depends on, by node id."""
    signatures: dict[str, str] = {}
    for key in plan.order:
        _sign(key, plan.graph[key], signatures)
    return signatures


def _sign(key: str, node: Mapping, signatures: dict[str, str]) -> str:
    """What a node's result depends on: of nodes with one signature the first runs, as with ComfyUI's cache."""
    inputs = {name: ["", signatures[v[0]], v[1]] if is_link(v) else v for name, v in node["inputs"].items()}
    text = json.dumps([node["class_type"], inputs], sort_keys=True)
    signatures[key] = hashlib.sha256(text.encode()).hexdigest()
    return signatures[key]


def repeat(twin: str, key: str, outcome: Outcome) -> None:
    """A node has what another one of the same signature gave."""
    kept: tuple[dict[str, Any], ...] = (outcome.values, outcome.saved, outcome.previews)
    for results in kept:
        if twin in results:
            results[key] = results[twin]


def arguments_of(key: str, plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """The inputs of a node, links as the values of the nodes that they name."""
    declared, values = plan.declared[key], outcome.values
    inputs = {name: value for name, value in plan.graph[key]["inputs"].items() if declared.spec(name)}
    return {name: values[v[0]][v[1]] if is_link(v) else v for name, v in inputs.items()}


def run_node(key: str, plan: Plan, outcome: Outcome, hidden: Mapping) -> None:
    """Run a node over the values of those before it; NodeFailed where it raises."""
    declared = plan.declared[key]
    try:
        given = {**arguments_of(key, plan, outcome), **hidden}
        result = getattr(declared.cls(), declared.cls.FUNCTION)(**given)
    except Exception as error:
        raise NodeFailed(key, declared.name, error) from error
    if isinstance(result, Mapping):
        shown, result = result.get("ui", {}), result.get("result", ())
        outcome.saved[key] = [*shown.get("images", []), *shown.get("files", [])]
        outcome.previews[key] = list(shown.get("previews", []))
    outcome.values[key] = tuple(result)
