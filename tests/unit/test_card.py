"""The embedded host on a pretended card: the CPU's values, and what a run asks of the card."""

from __future__ import annotations

import contextlib
from functools import cache

import card_cases
import drawing
import pretend_card
import pytest
import torch
from sana_nodes import host as hosts
from sana_nodes.host.embedded import devices
from sana_nodes.samplers.flow_match import FlowMatch

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a build of torch for CUDA asks a real card")

BOUND = 1e-4
"""Values of latents, which are about 1, and of images in [0, 1]."""

STEPS = 2


@pytest.fixture(scope="module")
def here(home, reference, sana_reference, video_references):
    card_cases.prepare(home)
    chosen = hosts.use("embedded")
    chosen.folders.models = [home / "models"]
    chosen.folders.input, chosen.folders.output = home / "input", home / "output"
    yield chosen
    hosts._current = None


@contextlib.contextmanager
def a_card(**kind):
    """A machine with a card, on which nothing is left behind."""
    with pretend_card.cards(**kind) as machine:
        try:
            yield machine
        finally:
            devices.put_all_away()


@cache
def on_the_cpu(name: str, here) -> torch.Tensor:
    return card_cases.SAMPLINGS[name].loaded(here)(STEPS)


def sampling(name: str) -> card_cases.Sampling:
    case = card_cases.SAMPLINGS[name]
    if case.weight_dtype == "int8_bnb":
        pytest.importorskip("bitsandbytes", reason="int8_bnb needs bitsandbytes")
    return case


@pytest.mark.parametrize("name", card_cases.SAMPLINGS)
def test_samplings(here, name):
    """Steps wait for nothing, move what is named and launch no more than is known."""
    case, expected = sampling(name), on_the_cpu(name, here)
    with a_card() as machine:
        run = case.loaded(here)
        result = run(STEPS)
        asked = card_cases.per_step(*(counted(machine, run, n) for n in (STEPS, 2 * STEPS)), STEPS)
    assert drawing.difference(result, expected) < BOUND
    assert not asked["waits"]
    print(name, asked)


def counted(machine, run, steps: int):
    machine.begin()
    run(steps)
    return machine.taken()


@pytest.mark.parametrize("name", card_cases.CODINGS)
def test_autoencoders(here, name):
    expected = card_cases.coded(here, *card_cases.CODINGS[name])
    with a_card():
        result = card_cases.coded(here, *card_cases.CODINGS[name])
    assert drawing.difference(result, expected) < BOUND


def test_prompts(here):
    expected = card_cases.encoded_prompt(here)
    with a_card():
        assert drawing.difference(card_cases.encoded_prompt(here), expected) < BOUND


def test_a_table_that_is_left_on_the_cpu_is_found(here):
    with a_card():
        run = sampling("SCM").loaded(here)
        run(1)
        block = devices._resident[-1].module.transformer_blocks[1]
        block._parameters["scale_shift_table"] = torch.nn.Parameter(torch.zeros(6, 64), requires_grad=False)
        with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
            run(1)


def test_a_value_that_a_step_asks_for_is_found(here, monkeypatch):
    true = FlowMatch.timestep
    monkeypatch.setattr(FlowMatch, "timestep", lambda self, sigma: true(self, sigma) * (sigma[0].item() >= 0))
    with a_card() as machine:
        run = sampling("guidance").loaded(here)
        waits = card_cases.per_step(*(counted(machine, run, n) for n in (2, 4)), 2)["waits"]
    assert list(waits.values()) == [1.0] and "tests/unit/test_card.py" in next(iter(waits))
