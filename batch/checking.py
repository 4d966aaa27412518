"""The first reading of a table: every row is checked before anything loads, and keys and hashes are remembered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..cli.calls import BadCall
from ..cli.workflows import declared_inputs
from .columns import Changes, Columns, digest, inputs_hash
from .keys import Keys
from .tables import BadRow, BadTable, Row, Table
from .worker import Job, Task, embedded_folders, with_inputs

MOST_PROBLEMS = 20
"""Rows that are named; reading ends there."""

WHOLE_CHECKS = 100
"""Combinations of sizes, models and choices with which the whole workflow is checked, and not only what changes."""


class Checks(Protocol):
    """What an engine has against the inputs of a row.

    ``declared``: see Columns. ``files``: folders in which a row's input files are. ``loaders``: ids of the nodes that
    give models.
    """

    declared: Mapping[str, Mapping[str, tuple]]
    files: tuple
    loaders: frozenset[str]

    def check(self, inputs: Changes, whole: bool) -> None:
        """BadRow says what is wrong; with ``whole`` every node is checked and not only those whose inputs are given."""


@dataclass
class Rows:
    """A table's rows as tasks. ``folders``: those of input files; ``loaders``: ids of the nodes that give models."""

    table: Table
    columns: Columns
    folders: tuple = ()
    loaders: frozenset[str] = frozenset()

    def task(self, number: int, row: Row) -> Task:
        """A row as a task; BadRow where its cells do not fit, BadTable where a column does not."""
        if row.problem:
            raise BadRow(row.problem)
        if not isinstance(row.cells, Mapping):
            raise BadRow("it is not a mapping of columns")
        key = self.columns.key_of(row.cells, number + 1)
        try:
            changes = self.columns.changes(row.cells)
        except BadCall as error:
            raise BadTable(f"{self.where(row)}: {error}") from error
        inputs = self.columns.inputs(changes)
        models = {node: inputs[node] for node in self.loaders & inputs.keys()}
        files = self.columns.chosen(changes) if self.folders else {}
        return Task(number, key, inputs, inputs_hash(changes, files, self.folders), digest(models) if models else "")

    def where(self, row: Row) -> str:
        return f"{self.table.name}, {self.table.line_word} {row.line}"

    def __iter__(self) -> Iterator[tuple[Row, int]]:
        for number, row in enumerate(self.table):
            yield row, number


def read_all(rows: Rows, checks: Checks) -> Keys:
    """The keys and hashes of a table whose every row was checked; BadTable names the rows that are wrong."""
    keys = Keys()
    problems: list[str] = []
    seen: set[tuple] = set()
    for row, number in rows:
        try:
            task = rows.task(number, row)
            fresh = rows.columns.alike(task.inputs)
            whole = fresh not in seen and len(seen) < WHOLE_CHECKS
            checks.check(task.inputs, whole)
            seen.update({fresh} if whole else ())
            _add(keys, task, row, rows.table.line_word)
        except BadRow as error:
            problems += [f"{rows.where(row)}: {line}" for line in str(error).splitlines()]
        if len(problems) >= MOST_PROBLEMS:
            problems[MOST_PROBLEMS:] = ["reading ended there; correct these rows first"]
            break
    if problems:
        raise BadTable("\n".join(problems))
    if len(keys) == 0:
        raise BadTable(f"{rows.table.name} has no rows")
    return keys


def _add(keys: Keys, task: Task, row: Row, word: str) -> None:
    """BadRow for the key of an earlier row; ``word``: what a row is counted in."""
    if earlier := keys.add(task.key, task.hash, row.line):
        line, key = earlier
        also = "" if key == task.key else f" ({key!r}, which some systems take for the same name)"
        raise BadRow(f"the key {task.key[:100]!r} is also that of {word} {line}{also}")


def loaders_of(outputs: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The nodes that give models; ``outputs``: the kinds that each node gives, by its id."""
    from ..host.embedded.kept import MODELS

    return frozenset(key for key, kinds in outputs.items() if MODELS.intersection(kinds))


class EmbeddedChecks:
    """The checks of the embedded host: those of every node, as ``run`` makes them."""

    def __init__(self, job: Job):
        from .. import NODE_CLASS_MAPPINGS
        from ..host.embedded import graph as executor

        self.graph, self.folders = job.graph, embedded_folders(job, "check")
        known = executor.known_classes(NODE_CLASS_MAPPINGS)
        self.files: tuple = (self.folders.input,)
        self.declared: Mapping[str, Mapping[str, tuple]] = declared_inputs(job.graph, known)
        classes = {key: known.get(node["class_type"]) for key, node in job.graph.items()}
        self.loaders = loaders_of({key: getattr(cls, "RETURN_TYPES", ()) for key, cls in classes.items()})
        self.plan: Any = None

    def check(self, inputs: Changes, whole: bool) -> None:
        from ..host.embedded import graph as executor

        try:
            self.folders.fetch(self.graph, inputs)
            if whole or self.plan is None:
                self.plan = self._whole(inputs)
            else:
                executor.varied(self.plan, inputs, self.folders)
        except executor.BadWorkflow as error:
            raise BadRow(str(error)) from error

    def _whole(self, inputs: Changes):
        from .. import NODE_CLASS_MAPPINGS
        from ..host.embedded import graph as executor

        try:
            plan = executor.check(with_inputs(self.graph, inputs), NODE_CLASS_MAPPINGS, self.folders)
        except executor.BadWorkflow as error:
            self._blame_workflow(str(error))
            raise
        if unused := [key for key in inputs if key not in plan.order]:
            raise BadCall(f"a column sets node {unused[0]}, which no output of the workflow needs")
        return plan

    def _blame_workflow(self, reason: str) -> None:
        """BadCall where the workflow is as wrong without the row."""
        from .. import NODE_CLASS_MAPPINGS
        from ..host.embedded import graph as executor

        try:
            executor.check(self.graph, NODE_CLASS_MAPPINGS, self.folders)
        except executor.BadWorkflow as error:
            if str(error) == reason:
                raise BadCall(reason) from error
