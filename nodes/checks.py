"""Checks of a workflow before it runs: one message, on the input that is wrong.

ComfyUI repeats a check's message for each input that the check names, and skips its own limits for them. So a check
here names no input until the graph that is about to run has a wrong one, and then that one alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..host import before_run

Problem = tuple[str, str]
"""The name of an input and what is wrong with it."""


@dataclass(frozen=True)
class GraphNode:
    """A node in an API-format graph."""

    graph: Mapping
    key: str

    @property
    def kind(self) -> str:
        return self._node().get("class_type", "")

    def _node(self) -> Mapping:
        node = self.graph.get(self.key)
        return node if isinstance(node, Mapping) else {}

    @property
    def inputs(self) -> Mapping:
        given = self._node().get("inputs")
        return given if isinstance(given, Mapping) else {}

    def values(self) -> dict[str, Any]:
        """The inputs that no link feeds."""
        return {name: value for name, value in self.inputs.items() if not isinstance(value, list)}

    def source(self, *names: str) -> GraphNode | None:
        """The node that the first connected input of these names comes from."""
        links = (self.inputs.get(name) for name in names)
        link = next((link for link in links if isinstance(link, list) and link), None)
        return GraphNode(self.graph, str(link[0])) if link and str(link[0]) in self.graph else None

    def after(self) -> Iterator[GraphNode]:
        """The nodes that take something of this one."""
        for key in self.graph:
            node = GraphNode(self.graph, key)
            if any(isinstance(link, list) and link and str(link[0]) == self.key for link in node.inputs.values()):
                yield node

    def before(self, *names: str) -> Iterator[GraphNode]:
        """The nodes along the links of these inputs, the nearest first."""
        node, seen = self.source(*names), {self.key}
        while node is not None and node.key not in seen:
            yield node
            seen.add(node.key)
            node = node.source(*names)


Rule = Callable[[GraphNode], Iterator[Problem]]


class Validation:
    """The VALIDATE_INPUTS of a node class.

    ``check``: keyword arguments to True or a message; an input that is connected to another node is left out or None.
    ``rules``: what the whole graph tells of a node. ``otherwise``: the input of a message that names none.
    ``always``: the one input that is always checked here, and whose list ComfyUI therefore does not check.
    """

    def __init__(self, check: Callable[..., Any] | None = None, *rules: Rule, otherwise: str = "", always: str = ""):
        self.check, self.rules, self.otherwise, self.always = check, rules, otherwise or always, always

    def __get__(self, instance, owner: type) -> Callable:
        wrong = self._wrong(owner)
        name = self.always or next(iter(wrong), None)

        def validate(*given, **values):
            values = {**dict(zip((name or self.otherwise,), given)), **values}
            if name in wrong:
                return wrong[name].get(repr(values.get(name)), True)
            return self.check(**values) if self.check else True

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [] if name is None else [inspect.Parameter(name, kind, default=None)]
        validate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return validate

    def _wrong(self, owner: type) -> dict[str, dict[str, str]]:
        """Input to value to message, for the nodes of a class in the graph that is about to run; found once."""
        known = before_run.found()
        if owner not in known:
            known[owner] = self._found(owner)
        return known[owner]

    def _found(self, owner: type) -> dict[str, dict[str, str]]:
        graph = before_run.graph()
        nodes = [GraphNode(graph, key) for key in graph]
        found: dict[str, dict[str, str]] = {}
        for node in nodes:
            if node.kind == owner.__name__:
                for name, message in self._problems(node, owner):
                    found.setdefault(name, {}).setdefault(repr(node.values().get(name)), message)
        return found

    def _problems(self, node: GraphNode, owner: type) -> Iterator[Problem]:
        """The problems of one node whose input has a value; those outside the declared limits are ComfyUI's to say."""
        values = node.values() if self.always else _within_limits(node, owner)
        message = self.check(**values) if self.check else True
        if message is not True:
            yield self._named(str(message), values)
        for rule in self.rules:
            yield from (problem for problem in rule(node) if problem[0] in values)

    def _named(self, message: str, values: Mapping) -> Problem:
        """A message with the input that it names first."""
        starts = {name: message.find(name) for name in values if name in message}
        longest = sorted(starts, key=lambda name: (starts[name], -len(name)))
        return (longest or [self.otherwise])[0], message


def _within_limits(node: GraphNode, owner: type) -> dict[str, Any]:
    """The values of a node's inputs; none of them where one is outside its limits."""
    declared = owner.INPUT_TYPES()  # type: ignore[attr-defined]
    specs = {**declared.get("required", {}), **declared.get("optional", {})}
    values = {name: converted(value, specs[name]) for name, value in node.values().items() if name in specs}
    return values if all(within(value, specs[name]) for name, value in values.items()) else {}


def converted(value: Any, spec: tuple) -> Any:
    """A value as ComfyUI converts it for an input; None where that fails, which ComfyUI then says."""
    make = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(spec[0] if isinstance(spec[0], str) else "")
    try:
        return make(value) if make else value
    except (TypeError, ValueError, OverflowError):
        return None


def within(value: Any, spec: tuple) -> bool:
    """Whether a value is within the limits, or in the list, that an input declares."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if not isinstance(kind, str):
        return not kind or value in kind
    if value is None:
        return kind not in ("INT", "FLOAT")
    low, high = options.get("min"), options.get("max")
    return (low is None or value >= low) and (high is None or value <= high)
