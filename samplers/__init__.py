"""Pure mathematics: tensors in, tensors out. Nothing here knows a host, a file or a node.

SAMPLERS is the one table of samplers: a new one is a function with k-diffusion's signature and a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from . import block_causal, flow_match, trigflow


@dataclass(frozen=True)
class Sampler:
    """One row.

    ``sigmas``: computes the noise levels for this sampler, float32 [n + 1], decreasing to 0; for flow
    matching from ``(steps, shift, denoise)``, for SCM see trigflow.scm_sigmas, for blocks from a text of timesteps.
    ``parameterisation``: the class of the model_sampling objects whose sigmas the sampler uses. ``block_causal``:
    True if it samples long videos block by block.
    """

    name: str
    function: Callable
    sigmas: Callable[..., torch.Tensor]
    parameterisation: type
    block_causal: bool = False


SAMPLERS = {
    row.name: row
    for row in (
        Sampler("scm", trigflow.sample_scm, trigflow.scm_sigmas, trigflow.TrigFlow),
        Sampler(
            "dpm_solver++",
            flow_match.sample_flow_dpm,
            partial(flow_match.sigmas_of_levels, flow_match.dpm_levels),
            flow_match.FlowMatch,
        ),
        Sampler(
            "euler",
            flow_match.sample_flow_euler,
            partial(flow_match.sigmas_of_levels, flow_match.euler_levels),
            flow_match.FlowMatch,
        ),
        Sampler("blocks", block_causal.sample_blocks, block_causal.parse_times, flow_match.FlowMatch, True),
    )
}

FLOW_SOLVERS = tuple(
    row.name for row in SAMPLERS.values() if row.parameterisation is flow_match.FlowMatch and not row.block_causal
)
"""The solvers of flow matching, the default first."""


def goes_by_blocks(function: Callable) -> bool:
    """Whether a sampler function is one that samples long videos block by block."""
    return any(row.function is function for row in SAMPLERS.values() if row.block_causal)


def flow_solver(name: str) -> Sampler:
    """The row of a flow-matching solver; ValueError for an unknown name."""
    if name not in FLOW_SOLVERS:
        raise ValueError(f"solver is {name!r}; choose one of {', '.join(FLOW_SOLVERS)}")
    return SAMPLERS[name]


def flow_sigmas(
    steps: int = 50,
    shift: float = flow_match.DEFAULT_SHIFT,
    solver: str = FLOW_SOLVERS[0],
    denoise: float = 1.0,
) -> torch.Tensor:
    """The noise levels for flow matching by a solver's name; see flow_match.sigmas_of_levels."""
    return flow_solver(solver).sigmas(steps, shift, denoise)
