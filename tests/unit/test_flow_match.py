"""Flow matching and its solvers against diffusers' schedulers."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from sana_nodes.samplers import flow_match, flow_sigmas, flow_solver
from sana_nodes.samplers.flow_match import FlowMatch

SOLVERS = ["dpm_solver++", "euler"]
STEPS = [*range(1, 41), 50, 100, 333, 1000]


def scheduler(solver: str, steps: int, shift: float):
    made = tiny.flow_scheduler(solver, shift)
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 2.37, 3.0, 6.0, 8.0])
def test_levels_are_the_schedulers(solver, shift):
    for steps in STEPS:
        theirs = scheduler(solver, steps, shift)
        mine = flow_sigmas(steps, shift, solver)
        assert (mine - theirs.sigmas).abs().max() < 2e-7, steps
        if solver == "dpm_solver++":
            whole = [math.floor(float(sigma) * 1000) for sigma in mine[:-1]]
            assert whole == theirs.timesteps.tolist(), steps


WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * 0.3


def network(x, time):
    return torch.tanh(x @ WEIGHT) + time / 1000 * x


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 4, 15, 20])
@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_loops_are_the_schedulers(solver, steps, shift):
    theirs, x = scheduler(solver, steps, shift), torch.randn(2, 8)
    expected = x.clone()
    for time in theirs.timesteps:
        expected = theirs.step(network(expected, time), time, expected, return_dict=False)[0]
    flow, asked = FlowMatch(shift), []

    def model(x, sigma, **_):
        asked.append(float(flow.timestep(sigma)[0]))
        return flow.calculate_denoised(sigma, network(x, flow.timestep(sigma)[:, None]), x)

    drawn = flow_solver(solver).function(model, x, flow_sigmas(steps, shift, solver))
    assert (drawn - expected).abs().max() < 2e-6
    assert torch.allclose(torch.tensor(asked), theirs.timesteps.float(), atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_held_stays(solver):
    flow, start = FlowMatch(8.0), torch.randn(1, 8)
    mask = (torch.arange(8) > 3).float()[None]
    known = torch.randn(1, 8)

    def model(x, sigma, **_):
        x = x * mask + known * (1 - mask)
        denoised = flow.calculate_denoised(sigma, network(x, flow.timestep(sigma)[:, None]), x)
        return denoised * mask + known * (1 - mask)

    drawn = flow_solver(solver).function(model, start, flow_sigmas(7, 8.0, solver), {"denoise_mask": mask})
    assert (drawn - known)[mask == 0].abs().max() < 1e-6
    assert (drawn - known)[mask == 1].abs().max() > 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_denoise_keeps_the_end_of_a_longer_run(solver):
    part, longer = flow_sigmas(10, 3.0, solver, 0.5), flow_sigmas(20, 3.0, solver)
    assert torch.allclose(part, longer[-11:], atol=1e-6)
    assert torch.allclose(flow_sigmas(10, 3.0, solver, 1.0), flow_sigmas(10, 3.0, solver), atol=1e-6)
    assert len(flow_sigmas(10, 3.0, solver, 0.0)) == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_denoise_begins_between_steps_too(solver):
    """0.9 of two steps is not both of them, and every bit less of denoise begins later."""
    starts = [flow_sigmas(2, 3.0, solver, denoise)[0].item() for denoise in (1.0, 0.95, 0.9, 0.8, 2 / 3, 0.5)]
    assert all(later < earlier for earlier, later in zip(starts, starts[1:]))
    assert abs(starts[4] - flow_sigmas(3, 3.0, solver)[1].item()) < 1e-6


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"shift": 0.0}, "shift is 0.0"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"solver": "heun"}, "dpm_solver.., euler"),
        ({"denoise": 1.5}, "denoise is 1.5"),
    ],
    ids=str,
)
def test_bad_schedules(settings, said):
    with pytest.raises(ValueError, match=said):
        flow_sigmas(**settings)


@pytest.mark.parametrize(
    "values,said",
    [([1.5, 0.5, 0.0], "from 1 down to 0"), ([0.5, 0.7, 0.0], "must decrease"), ([float("nan"), 0.0], "not a number")],
    ids=str,
)
def test_bad_sigmas(values, said):
    with pytest.raises(ValueError, match=said):
        flow_match.check_sigmas(torch.tensor(values))


def test_an_unknown_solver():
    with pytest.raises(ValueError, match="choose one of"):
        flow_solver("heun")


def test_runs_start_from_noise_where_the_latent_is_empty():
    flow, noise = FlowMatch(8.0), torch.randn(1, 4, 3, 2, 2)
    latent = torch.zeros(1, 4, 3, 2, 2)
    assert torch.equal(flow.noise_scaling(torch.tensor(0.7), noise, latent), noise)
    latent[:, :, 0] = 2.0
    started = flow.noise_scaling(torch.tensor(0.7), noise, latent)
    assert torch.equal(started[:, :, 1:], noise[:, :, 1:])
    assert torch.allclose(started[:, :, 0], 0.3 * latent[:, :, 0] + 0.7 * noise[:, :, 0])


def test_a_split_run_goes_on_where_it_was():
    flow, latent = FlowMatch(3.0), torch.randn(1, 4, 2, 2)
    sigma = torch.tensor(0.4)
    again = flow.noise_scaling(sigma, torch.zeros_like(latent), flow.inverse_noise_scaling(sigma, latent))
    assert torch.allclose(again, latent, atol=1e-6)


def test_the_parameterisation_is_comfyuis_flow():
    flow = FlowMatch(8.0)
    assert flow.percent_to_sigma(0.0) == 1.0 and flow.percent_to_sigma(1.0) == 0.0
    assert abs(flow.percent_to_sigma(0.5) - 8 / 9) < 1e-9
    assert len(flow.sigmas) == 1000 and flow.sigma_max == 1.0
    sigma = flow.sigmas[123]
    assert torch.isclose(flow.timestep(sigma), sigma * 1000)
