"""What a run of a workflow leaves for the next one: loaded models, encoded prompts, and all that no value changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Set

import torch

from .graph import Plan, is_link

MODELS = {"MODEL", "CLIP", "VAE", "CONTROL_NET"}
"""Kept until a run needs others; these are released before those are loaded."""

PROMPT_BYTES = 1 << 29
"""Bytes of encoded prompts that are kept; those that were used longest ago are dropped first."""


class Kept:
    """Results of nodes for later runs of one workflow, of which some inputs change from run to run.

    ``varied``: the ids of the nodes whose values change. Images and latents that depend on one are not kept, so that
    memory stays flat over any number of runs.
    """

    def __init__(self, varied: Iterable[str], prompt_bytes: int = PROMPT_BYTES):
        self.varied, self.prompt_bytes = set(varied), prompt_bytes
        self._values: dict[str, tuple] = {}
        self._prompts: OrderedDict[str, tuple[tuple, int]] = OrderedDict()
        self._held = 0
        self._prompt_nodes: set[str] = set()
        self._lasting: set[str] = set()

    def begin(self, plan: Plan, needed: Set[str]) -> None:
        """Runs of a plan begin, whose nodes have these signatures; what none of them needs is released."""
        if not self._lasting:
            self._lasting, self._prompt_nodes = _lasting(plan, self.varied), _prompt_nodes(plan)
        self._values = {signature: values for signature, values in self._values.items() if signature in needed}

    def get(self, signature: str) -> tuple | None:
        """The values of a node, None where they are not kept."""
        if signature in self._prompts:
            self._prompts.move_to_end(signature)
            return self._prompts[signature][0]
        return self._values.get(signature)

    def put(self, key: str, signature: str, values: tuple) -> None:
        """A node was run."""
        if key in self._prompt_nodes:
            self._put_prompt(signature, values)
        elif key in self._lasting:
            self._values[signature] = values

    def _put_prompt(self, signature: str, values: tuple) -> None:
        size = sum(states.nbytes for value in values for states, _ in value if torch.is_tensor(states))
        self._prompts[signature] = values, size
        self._held += size
        while self._held > self.prompt_bytes and len(self._prompts) > 1:
            _, (_, dropped) = self._prompts.popitem(last=False)
            self._held -= dropped


def _lasting(plan: Plan, varied: set[str]) -> set[str]:
    """Nodes whose results the next run may need: models, and what depends on nothing that changes."""
    constant: set[str] = set()
    for key in plan.order:
        sources = {value[0] for value in plan.graph[key]["inputs"].values() if is_link(value)}
        if key not in varied and sources <= constant:
            constant.add(key)
    models = {key for key in plan.order if MODELS.issuperset(plan.declared[key].cls.RETURN_TYPES)}
    outputs = {key for key in plan.order if getattr(plan.declared[key].cls, "OUTPUT_NODE", False)}
    return (constant | models) - outputs


def _prompt_nodes(plan: Plan) -> set[str]:
    """Nodes that make CONDITIONING of a CLIP and of values alone."""
    found = set()
    for key in plan.order:
        inputs = plan.graph[key]["inputs"]
        kinds = {plan.declared[key].spec(name)[0] for name, value in inputs.items() if is_link(value)}
        if kinds == {"CLIP"} and set(plan.declared[key].cls.RETURN_TYPES) == {"CONDITIONING"}:
            found.add(key)
    return found
