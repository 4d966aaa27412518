"""The workflow that is about to be checked: what a node's own check may look at besides its inputs.

A check of ComfyUI's sees the inputs of one node, and its message is repeated for each of them. With the whole graph
at hand the nodes name the one input that is wrong (nodes.checks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_graph: ContextVar[tuple[Mapping, dict] | None] = ContextVar("sana_graph", default=None)


def remember(graph: Mapping | None) -> None:
    """Note an API-format graph, for the checks of this request."""
    _graph.set((graph, {}) if isinstance(graph, Mapping) else None)


@contextmanager
def checking(graph: Mapping) -> Iterator[None]:
    """Within it the checks are of an API-format graph."""
    before = _graph.set((graph, {}))
    try:
        yield
    finally:
        _graph.reset(before)


def graph() -> Mapping:
    """The graph that is being checked; an empty one where nobody noted it."""
    return (_graph.get() or ({}, {}))[0]


def found() -> dict:
    """What checks have found in that graph, by class: each is asked for several times in one request."""
    return (_graph.get() or ({}, {}))[1]
