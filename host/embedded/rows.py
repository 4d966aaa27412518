"""Several rows of one workflow: node by node as far as they gain from one another, then each to its end.

Nodes up to the last one that samples or encodes run for all rows before the next node does; the rest, which holds
whole images, runs row by row. What only saves is left to ``finish``, which may run in another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...networks.prompt_cache import PROMPTS
from ..contract import Sampling
from .folders import Folders
from .graph import NodeFailed, Outcome, Plan, arguments_of, hidden_inputs, is_link, repeat, run_node, signatures_of
from .kept import MODELS, Kept
from .together import Row, sample_together

Values = tuple | NodeFailed


@dataclass
class Run:
    """A row's way through a workflow. ``begin`` is called before nodes of it run, wherever they do."""

    plan: Plan
    begin: Callable[[], None] = lambda: None
    outcome: Outcome = field(default_factory=Outcome)
    signatures: dict[str, str] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    """The node that ran of those with a signature."""

    error: NodeFailed | None = None


class Rows:
    """Runs of one workflow; ``metadata``: write the workflow into files. ``kept`` outlives them."""

    def __init__(self, folders: Folders, metadata: bool, kept: Kept):
        self.folders, self.metadata, self.kept = folders, metadata, kept
        self._parts: tuple[list[str], list[str], list[str]] | None = None

    def perform(self, runs: Sequence[Run]) -> Iterator[Run]:
        """Each run as soon as all of it but what saves has run, or it has an error."""
        ahead, after, _ = self._split(runs[0].plan)
        for run in runs:
            run.signatures = signatures_of(run.plan)
        self.kept.begin(runs[0].plan, {signature for run in runs for signature in run.signatures.values()})
        for key in ahead:
            self._together(key, [run for run in runs if run.error is None])
        for run in runs:
            for key in after:
                self._together(key, [run] if run.error is None else [])
            yield run

    def finish(self, run: Run) -> Outcome:
        """Run what saves. Raises the NodeFailed of this run, also of an earlier node."""
        if run.error is None:
            for key in self._split(run.plan)[2]:
                self._together(key, [run] if run.error is None else [])
        run.outcome.values.clear()
        if run.error is not None:
            raise run.error
        return run.outcome

    def _split(self, plan: Plan) -> tuple[list[str], list[str], list[str]]:
        """The nodes that run ahead for all rows, row by row, and at the end of a row; all rows have the same."""
        if self._parts is None:
            savers = [key for key in plan.order if _only_saves(key, plan)]
            order = [key for key in plan.order if key not in savers]
            joint = [n for n, key in enumerate(order) if _gains(plan.declared[key].cls)]
            count = joint[-1] + 1 if joint else 0
            self._parts = order[:count], order[count:], savers
        return self._parts

    def _together(self, key: str, runs: Sequence[Run]) -> None:
        """A node of several runs; those with one signature share what it gives, unless it saves."""
        todo: dict[Any, list[Run]] = {}
        for run in runs:
            signature = run.signatures[key]
            twin = run.first.setdefault(signature, key)
            if twin != key:
                repeat(twin, key, run.outcome)
            elif (values := self.kept.get(signature)) is not None:
                run.outcome.values[key] = values
            else:
                saves = getattr(run.plan.declared[key].cls, "OUTPUT_NODE", False)
                todo.setdefault((signature, id(run)) if saves else signature, []).append(run)
        if todo:
            for sharing, result in zip(todo.values(), self._values(key, [sharing[0] for sharing in todo.values()])):
                self._give(key, sharing, result)

    def _give(self, key: str, sharing: Sequence[Run], values: Values) -> None:
        for run in sharing:
            if isinstance(values, NodeFailed):
                run.error = values
            else:
                run.outcome.values[key] = values
        if not isinstance(values, NodeFailed):
            self.kept.put(key, sharing[0].signatures[key], values)

    def _values(self, key: str, runs: Sequence[Run]) -> list[Values]:
        """What a node gives in each of these runs."""
        cls = runs[0].plan.declared[key].cls
        if len(runs) > 1 and hasattr(cls, "REQUEST"):
            return self._sampled(key, runs, cls.REQUEST)
        if len(runs) > 1 and hasattr(cls, "prompts"):
            return self._encoded(key, runs)
        return [self._one(key, run) for run in runs]

    def _one(self, key: str, run: Run) -> Values:
        run.begin()
        prompt = run.plan.graph if self.metadata else None
        try:
            run_node(key, run.plan, run.outcome, hidden_inputs(run.plan.declared[key], self.folders, prompt))
        except NodeFailed as error:
            return error
        return run.outcome.values[key]

    def _encoded(self, key: str, runs: Sequence[Run]) -> list[Values]:
        """A node that encodes prompts: those of several runs first, which each one then finds in its CLIP's cache."""
        results: list[Values] = []
        for begin in range(0, len(runs), PROMPTS // 2):  # a node has two at most
            some = runs[begin : begin + PROMPTS // 2]
            with suppress(Exception):  # each node says what is wrong with its own prompt
                _encode_ahead([(run.plan.declared[key].cls, arguments_of(key, run.plan, run.outcome)) for run in some])
            results += [self._one(key, run) for run in some]
        return results

    def _sampled(self, key: str, runs: Sequence[Run], request: str) -> list[Values]:
        """A sampler's results for several runs, in as few batches as may be."""
        results: dict[int, Any] = {}
        rows: dict[int, Row] = {}
        for number, run in enumerate(runs):
            again = _asking(key, run, request)
            try:
                found = again()
            except Exception as error:
                found = error
            if isinstance(found, Sampling):
                rows[number] = Row(found, again)
            else:
                results[number] = found
        results.update(zip(rows, sample_together(list(rows.values()))))
        return [self._as_values(key, run, results[number]) for number, run in enumerate(runs)]

    def _as_values(self, key: str, run: Run, result: Mapping | Exception) -> Values:
        if isinstance(result, Exception):
            return NodeFailed(key, run.plan.declared[key].name, result)
        return (result,)


def _encode_ahead(nodes: Sequence[tuple[Any, dict]]) -> None:
    """``nodes``: classes and arguments."""
    prompts: dict[int, tuple[Any, list]] = {}
    for cls, arguments in nodes:
        prompts.setdefault(id(arguments["clip"]), (arguments["clip"], []))[1].extend(cls.prompts(**arguments))
    for clip, of_clip in prompts.values():
        clip.conditions(of_clip)


def _asking(key: str, run: Run, request: str) -> Callable[[], Any]:
    return lambda: getattr(run.plan.declared[key].cls(), request)(**arguments_of(key, run.plan, run.outcome))


def _gains(cls: type) -> bool:
    """Whether a class does several rows better together: samplers, and what encodes prompts."""
    return hasattr(cls, "REQUEST") or "CONDITIONING" in getattr(cls, "RETURN_TYPES", ())


def _only_saves(key: str, plan: Plan) -> bool:
    """Whether a node saves what others made, with no model, and no other node needs it."""
    declared, inputs = plan.declared[key], plan.graph[key]["inputs"]
    kinds = {declared.spec(name)[0] for name, value in inputs.items() if is_link(value) and declared.spec(name)}
    needed = {v[0] for node in map(plan.graph.get, plan.order) for v in node["inputs"].values() if is_link(v)}  # type: ignore[index]
    return bool(getattr(declared.cls, "OUTPUT_NODE", False)) and not kinds & MODELS and key not in needed
