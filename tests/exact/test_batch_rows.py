"""Rows that are sampled together: each has the latent and the image that it has alone, with its own seed."""

from __future__ import annotations

import copy

import graphs
import numpy as np
import pytest
import torch
from PIL import Image
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.host.embedded import graph as executor
from sana_nodes.host.embedded import runtime, together
from sana_nodes.host.embedded.kept import Kept
from sana_nodes.host.embedded.rows import Rows, Run

LIMIT = 1e-4
TEXTS = [
    "a red ring",
    "a small green square on the left of a white background, seen from above",
    "a ring",
    "a red ring",
]


@pytest.fixture
def folders(home, reference, sana_reference, video_references):
    from sana_nodes import host as hosts

    chosen = hosts.use("embedded")
    chosen.folders.models, chosen.folders.input = [home / "models"], home / "input"
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 4), np.uint8)
    pixels[:32, :, 3] = 0
    pixels[32:, :, 3] = 255
    Image.fromarray(pixels, "RGBA").save(home / "input" / "rows.png")
    yield chosen.folders
    hosts._current = None


@pytest.fixture
def calls(monkeypatch):
    """The batch size of each call of a transformer from here on."""
    seen, usual = [], runtime.network_inputs

    def inputs(*given, **options):
        found = usual(*given, **options)
        seen.append(len(found["hidden_states"]))
        return found

    monkeypatch.setattr(runtime, "network_inputs", inputs)
    return seen


def rows_of(graph: dict, text: str = "text", **changes) -> list[dict]:
    """A workflow with each of TEXTS, its own seed, and its own of each list in ``changes``."""
    found = []
    for number, words in enumerate(TEXTS):
        one = copy.deepcopy(graph)
        one["2"]["inputs"][text] = words
        one["4"]["inputs"]["seed"] = 7 * number
        for name, values in changes.items():
            one["4" if name in one["4"]["inputs"] else "3"]["inputs"][name] = values[number]
        one["1"]["inputs"]["weight_dtype"] = "fp32"
        found.append(one)
    return found


def made(folders, graphs: list[dict], decodes: str = "5") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The latent and the images of each row."""
    plans = [executor.check(graph, NODE_CLASS_MAPPINGS, folders) for graph in graphs]
    rows, found = Rows(folders, False, Kept({"2", "4"})), []
    for run in rows.perform([Run(plan) for plan in plans]):
        assert run.error is None, run.error
        latent, images = (run.outcome.values[key][0] for key in ("4", decodes))
        found.append((latent["samples"], images))
    return found


def assert_as_alone(folders, graphs: list[dict]):
    several, alone = made(folders, graphs), [made(folders, [graph])[0] for graph in graphs]
    for (latent, images), (latent_alone, images_alone) in zip(several, alone):
        assert latent.shape == latent_alone.shape
        assert (latent - latent_alone).abs().max() < LIMIT
        assert (images - images_alone).abs().max() < 1 / 255
    different = [(one - two).abs().max() for (one, _), (two, _) in zip(alone, alone[1:])]
    assert min(different) > 100 * LIMIT, "rows that do not differ show nothing"


def masked(nodes: dict) -> dict:
    """An image of which half is held."""
    nodes = graphs.picture(nodes, "rows.png")
    nodes["32"] = graphs.node("SetLatentNoiseMask", samples=["3", 0], mask=["30", 1])
    nodes["4"]["inputs"]["latent_image"] = ["32", 0]
    return nodes


WORKFLOWS = {
    "sprint": (lambda: graphs.example(steps=3), "text"),
    "flow": (lambda: graphs.sana(steps=2), "text"),
    "euler": (lambda: graphs.sana(solver="euler", cfg=1.0, steps=2), "text"),
    "inpainting": (lambda: masked(graphs.example(denoise=0.7)), "text"),
    "video": (lambda: graphs.video(steps=2), "prompt"),
    "image to video": (lambda: graphs.from_picture(graphs.video(steps=2, cfg=1.0), "rows.png"), "prompt"),
}


@pytest.mark.parametrize(("graph", "text"), WORKFLOWS.values(), ids=WORKFLOWS)
def test_rows_together_are_the_rows_alone(folders, calls, graph, text):
    assert_as_alone(folders, rows_of(graph(), text))
    joint = len(calls) // 5
    assert set(calls[:joint]) == {4} and set(calls[joint:]) == {1}, "one call for the four, and one for each alone"


def test_both_prompts_of_several_rows_in_one_call(folders, calls, monkeypatch):
    """As on a card that has memory for both."""
    monkeypatch.setattr(runtime, "fits_free_memory", lambda device, needed: True)
    assert_as_alone(folders, rows_of(graphs.sana(steps=2)))
    assert set(calls) == {8, 2}


def test_images_of_one_seed_stay_together(folders):
    assert_as_alone(folders, rows_of(graphs.example(steps=2), batch_size=[2, 1, 3, 1]))


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"steps": [2, 3, 2, 3]}, {2}),
        ({"width": [64, 96, 64, 96]}, {2}),
        ({"denoise": [1.0, 0.9, 0.8, 0.7]}, {1}),
    ],
    ids=["steps", "sizes", "schedules"],
)
def test_rows_that_differ_are_apart(folders, calls, changes, sizes):
    graphs_of_rows = rows_of(graphs.example(), **changes)
    several = made(folders, graphs_of_rows)
    assert set(calls) == sizes
    for graph, (latent, _) in zip(graphs_of_rows, several):
        assert (made(folders, [graph])[0][0] - latent).abs().max() < LIMIT


def test_other_models_are_apart(folders, calls):
    rows = rows_of(graphs.example())
    rows[1]["1"]["inputs"]["weight_dtype"] = "bf16"
    made(folders, rows)
    assert sorted(set(calls)) == [1, 3]


def test_rows_with_a_controlnet_are_alone(folders, calls):
    made(folders, rows_of(graphs.with_controlnet(graphs.sana(), "rows.png")))
    assert set(calls) == {1}


def test_as_many_as_memory_allows(folders, calls, monkeypatch):
    rows = rows_of(graphs.example(steps=1))
    room = 3 * one_row(folders, rows[0])
    monkeypatch.setattr(together, "room_for_batches", lambda device, module: room)
    calls.clear()
    made(folders, rows)
    assert calls == [3, 1]


def one_row(folders, graph) -> int:
    """The bytes that the model estimates for a row."""
    plan = executor.check(graph, NODE_CLASS_MAPPINGS, folders)
    (run,) = Rows(folders, False, Kept(())).perform([Run(plan)])
    values = run.outcome.values
    guidance = runtime.Guidance(values["2"][0])
    return runtime.step_bytes(values["1"][0], guidance, values["3"][0]["samples"].shape)


def test_memory_that_runs_out_after_all_halves_the_batch(folders, calls, monkeypatch):
    """And the rows have the noise that they have alone, though it was taken once."""
    usual = runtime._x0

    def limited(model, x, *given, **options):
        found = usual(model, x, *given, **options)
        if len(x) > 2 and len(calls) > 1:  # in the second step: noise of the first one was taken
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(runtime, "_x0", limited)
    rows = rows_of(graphs.example(steps=3))
    several = made(folders, rows)
    assert calls == [4, 4, *[2] * 6]
    for graph, (latent, _) in zip(rows, several):
        assert (made(folders, [graph])[0][0] - latent).abs().max() < LIMIT


def test_a_row_that_fails_does_not_take_others_with_it(folders, monkeypatch):
    usual = runtime._x0

    def broken(model, x, *given, **options):
        if len(x) > 1 or options["context"].shape[1] > 20:
            raise ValueError("too long")
        return usual(model, x, *given, **options)

    monkeypatch.setattr(runtime, "_x0", broken)
    plans = [executor.check(graph, NODE_CLASS_MAPPINGS, folders) for graph in rows_of(graphs.example())]
    errors = [run.error for run in Rows(folders, False, Kept({"2", "4"})).perform([Run(plan) for plan in plans])]
    assert [error is None for error in errors] == [True, False, True, True]
    assert str(errors[1]) == "node 4 (Sana SCM Sample): too long"


@pytest.mark.parametrize("graph", [graphs.example, graphs.video], ids=["image", "video"])
def test_prompts_are_encoded_in_few_calls(folders, monkeypatch, graph):
    """That of the instruction, and those of the prompts; each prompt once, though two rows have it."""
    from sana_nodes.networks import prompt_cache

    seen, usual = [], prompt_cache.PromptCache._computed
    monkeypatch.setattr(
        prompt_cache.PromptCache,
        "_computed",
        lambda self, module, prompts, *given: [seen.append(len(prompts)), usual(self, module, prompts, *given)][1],
    )
    made(folders, rows_of(graph(steps=1), "text" if graph is graphs.example else "prompt"))
    assert sum(seen) == (3 if graph is graphs.example else 4) and len(seen) < sum(seen)


def test_a_prompt_that_cannot_be_encoded_fails_alone(folders):
    rows = rows_of(graphs.example(steps=1))
    plans = [executor.check(graph, NODE_CLASS_MAPPINGS, folders) for graph in rows]
    plans[2].graph["2"]["inputs"]["max_sequence_length"] = 9000
    errors = [run.error for run in Rows(folders, False, Kept({"2", "4"})).perform([Run(plan) for plan in plans])]
    assert [error is None for error in errors] == [True, True, False, True]
    assert "max_sequence_length is 9000" in str(errors[2])
