"""The order in which rows are made: those of one model after one another, and of those the ones that share a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import islice

from .columns import Changes
from .worker import Task

AHEAD = 512
"""Rows that are read ahead; a table is never held whole."""


def ordered(tasks: Iterator[Task], alike: Callable[[Changes], Hashable] | None) -> Iterator[Task]:
    """Tasks with few changes of the models, and next to one another where ``alike`` gives the same (None: does not
    matter). Those of the models that are loaded come first; else the order stays.
    """
    last = ""
    while some := list(islice(tasks, AHEAD)):
        groups: dict[str, dict[Hashable, list[Task]]] = {last: {}}
        for task in some:
            groups.setdefault(task.models, {}).setdefault(alike(task.inputs) if alike else None, []).append(task)
        for of_model in groups.values():
            for same in of_model.values():
                yield from same
        last = next((models for models, of_model in reversed(groups.items()) if of_model), last)
