"""The embedded host on a pretended card: the CPU's values, and what a run asks of the card."""

from __future__ import annotations

from functools import cache

import card_cases
import card_process
import drawing
import pytest
import torch
from sana_nodes import host as hosts
from sana_nodes.host.embedded import devices, runtime
from sana_nodes.networks import previews
from sana_nodes.samplers.flow_match import FlowMatch

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a build of torch for CUDA asks a real card")

BOUND = 1e-4
"""Values of latents, which are about 1, and of images in [0, 1]."""

STEPS = 2

WITHOUT_BF16 = (7, 5)
"""A card that computes in float32 what is stored in eight bits, as the CPU does here."""


@pytest.fixture(scope="module")
def here(home, reference, sana_reference, video_references):
    card_cases.prepare(home)
    chosen = hosts.use("embedded")
    chosen.folders.models = [home / "models"]
    chosen.folders.input, chosen.folders.output = home / "input", home / "output"
    yield chosen
    hosts._current = None


@cache
def on_the_cpu(name: str, here) -> torch.Tensor:
    return card_cases.SAMPLINGS[name].loaded(here)(STEPS)


def sampling(name: str) -> card_cases.Sampling:
    case = card_cases.SAMPLINGS[name]
    if case.weight_dtype == "int8_bnb":
        pytest.importorskip("bitsandbytes", reason="int8_bnb needs bitsandbytes")
    return case


@pytest.mark.parametrize("name", [name for name in card_cases.LAUNCHES if "packed" not in name])
def test_samplings(here, name):
    case, expected = sampling(name), on_the_cpu(name, here)
    with card_cases.a_card(capability=WITHOUT_BF16) as machine:
        run = case.loaded(here)
        result = run(STEPS)
        asked = per_step(machine, run)
    assert drawing.difference(result, expected) < BOUND
    card_process.check_step(asked, name)


def per_step(machine, run) -> dict:
    counts = []
    for steps in (STEPS, 2 * STEPS):
        machine.begin()
        run(steps)
        counts.append(machine.taken())
    return card_cases.per_step(*counts, STEPS)


@pytest.mark.parametrize("name", card_cases.CODINGS)
def test_autoencoders(here, name):
    expected = card_cases.coded(here, *card_cases.CODINGS[name])
    with card_cases.a_card():
        result = card_cases.coded(here, *card_cases.CODINGS[name])
    assert drawing.difference(result, expected) < BOUND


@pytest.mark.parametrize("name", ["SCM", "guidance", "text to video"])
def test_a_step_takes_what_is_estimated(here, monkeypatch, name):
    """Latents aside; small models need more beside their maps than the published ones, at most a fifth."""
    true = runtime._call_bytes
    asked = []
    monkeypatch.setattr(runtime, "_call_bytes", lambda *given: asked.append(true(*given)) or asked[-1])
    with card_cases.a_card() as machine:
        run = sampling(name).loaded(here)
        run(1)
        machine.begin()
        before, samples = machine.used[0], run(1)
        taken = machine.peak[0] - before
    assert taken < 1.2 * max(asked) + 6 * samples.nbytes


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_an_image_takes_what_is_estimated(here, half):
    with card_cases.a_card() as machine:
        vae = drawing.call("SanaLoadPipeline", pipeline="tiny")[2]
        given = {"encode": torch.rand(1, 256, 256, 3), "decode": torch.randn(1, 32, 8, 8)}[half]
        getattr(vae, half)(given)
        machine.begin()
        before = machine.used[0]
        getattr(vae, half)(given)
        taken = machine.peak[0] - before
    shape = given.shape[-2:] if half == "decode" else given.shape[1:3]
    assert taken < 1.2 * getattr(vae.autoencoder.memory, half)(shape, 4)


def test_previews(here):
    """What ComfyUI shows of a latent: the fitted map by its own code, and tsd by this."""
    sizes = {"0.conv_a": (32, 32, 3), "0.conv_b": (32, 64, 3), "0.conv_c": (32, 96, 3), "0.conv_l": (32, 32, 1)}
    weights = {}
    for layer, (outputs, inputs, side) in {**sizes, "1": (3, 8, 3)}.items():
        weights[f"{layer}.weight"] = torch.randn(outputs, inputs, side, side) / (inputs * side**2) ** 0.5
        weights[f"{layer}.bias"] = torch.randn(outputs) * 0.1
    latent, decoder = torch.randn(1, 32, 2, 3), previews.TinyDecoder(weights, 1)
    vae = drawing.call("SanaLoadPipeline", pipeline="tiny")[2]
    expected = decoder(latent), previews.fit_preview(vae.encode, 32)
    with card_cases.a_card():
        vae = drawing.call("SanaLoadPipeline", pipeline="tiny")[2]
        result = decoder(latent.to("cuda")).cpu(), previews.fit_preview(vae.encode, 32)
    assert drawing.difference(result[0], expected[0]) < BOUND
    assert torch.allclose(torch.tensor(result[1].factors), torch.tensor(expected[1].factors), atol=1e-3)


def test_prompts(here):
    expected = card_cases.encoded_prompt(here)
    with card_cases.a_card():
        assert drawing.difference(card_cases.encoded_prompt(here), expected) < BOUND


def test_a_table_that_is_left_on_the_cpu_is_found(here):
    with card_cases.a_card():
        run = sampling("SCM").loaded(here)
        run(1)
        block = devices._resident[-1].module.transformer_blocks[1]
        block._parameters["scale_shift_table"] = torch.nn.Parameter(torch.zeros(6, 64), requires_grad=False)
        with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
            run(1)


def test_a_value_that_a_step_asks_for_is_found(here, monkeypatch):
    true = FlowMatch.timestep
    monkeypatch.setattr(FlowMatch, "timestep", lambda self, sigma: true(self, sigma) * (sigma[0].item() >= 0))
    with card_cases.a_card() as machine:
        run = sampling("guidance").loaded(here)
        waits = per_step(machine, run)["waits"]
    assert list(waits.values()) == [1.0] and "tests/unit/test_card.py" in next(iter(waits))
