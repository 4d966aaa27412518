"""benchmarks/gpu.py and benchmarks/launches.py run, on tiny models on the CPU, and their figures mean what they say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
import torch
from sana_nodes.networks import accelerated

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))  # last: it has a graphs.py as support has

import gpu
import launches

NAMES = ("sprint-0.6b-step",)


@pytest.fixture
def eager(monkeypatch):
    """A backend that compiles nothing."""
    monkeypatch.setattr(accelerated, "BACKEND", "eager")


def test_the_report_has_every_cell(tmp_path, eager, monkeypatch, capsys):
    models = {name: gpu.CONFIGS[name] for name in ("Sprint 0.6B",)}
    monkeypatch.setattr(gpu, "CONFIGS", models)
    assert gpu.main([*NAMES, "--small", "--repeats", "1", "--output", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "report.json").read_text())
    assert [row.pop("row") for row in figures["rows"]] == list(NAMES)
    for row in figures["rows"]:
        assert len(row) == 5
        for side, cell in row.items():
            assert "failed" not in cell, f"{side}: {cell}"
            assert cell["seconds"] > 0 and cell["peak"] > 0 and cell["roofline"] > 0
            assert cell["error"] <= 2 * row["diffusers"]["error"]
    assert len(figures["equalities"]) == len(models) * 3 and all(one["holds"] for one in figures["equalities"])
    assert len(figures["bfloat16"]) == len(NAMES) * 3
    text = (tmp_path / "report.md").read_text()
    assert "NO" not in text and "| sprint-0.6b-step |" in text and "pack, graphs" in text


def test_what_does_not_hold_or_fails_is_in_the_report(tmp_path, eager, monkeypatch):
    monkeypatch.setattr(gpu, "CONFIGS", {"Sprint 0.6B": gpu.CONFIGS["Sprint 0.6B"]})
    monkeypatch.setattr(gpu, "BOUND", 0.0)

    def broken(size):
        raise MemoryError("too large")

    monkeypatch.setitem(gpu.ROWS, "dc-ae-decode", broken)
    assert gpu.main(["dc-ae-decode", "--small", "--repeats", "1", "--output", str(tmp_path)]) == 1
    text = (tmp_path / "report.md").read_text()
    assert "MemoryError: too large" in text and "| NO |" in text


@pytest.mark.skipif(torch.version.cuda is not None, reason="a build of torch for CUDA asks a real card")
def test_it_runs_on_a_pretended_card(tmp_path):
    """All that asks a card (memory, waiting, moving, its name) as on a machine that has one."""
    program = tiny.REPOSITORY / "tests" / "support" / "card_benchmark.py"
    command = [sys.executable, str(program), str(tmp_path), *NAMES, "Sprint 0.6B"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads((tmp_path / "report.json").read_text())
    assert "Pretended card" in str(figures["machine"])
    (row,) = figures["rows"]
    assert all("failed" not in cell and cell["peak"] > 0 for side, cell in row.items() if side != "row"), row
    assert all(one["holds"] for one in figures["equalities"])


@pytest.fixture
def shallow(monkeypatch):
    """The published widths with two blocks."""
    for name, (kind, config) in list(launches.CONFIGS.items()):
        if "Transformer" in kind:
            monkeypatch.setitem(launches.CONFIGS, name, (kind, {**config, "num_layers": 2}))


BLOCKS_AT_MOST = {"sprint-0.6b-step": 24, "sana-1.6b-step-cfg": 20}
"""Launches of one more block in a later step; diffusers have 74 and 47."""


@pytest.mark.parametrize("name", BLOCKS_AT_MOST)
def test_launches_of_a_block(name, shallow, monkeypatch):
    two = launches.count_row(name)
    kind, config = launches.CONFIGS[launches.STEPS[name].model]
    monkeypatch.setitem(launches.CONFIGS, launches.STEPS[name].model, (kind, {**config, "num_layers": 3}))
    three = launches.count_row(name)
    assert three["later_launches"] - two["later_launches"] <= BLOCKS_AT_MOST[name]
    assert three["later_launches"] < three["first_launches"] < three["diffusers_launches"]
    assert three["later_gb"] < three["diffusers_gb"]


def test_bytes_of_a_decoded_image():
    """Before, when norms, casts and gates were passes of their own, 82.7 GB."""
    row = launches.count_row("dc-ae-decode")
    assert row["later_gb"] < 0.6 * 82.7 and row["later_gb"] < 0.62 * row["diffusers_gb"]


def test_host_time_has_every_side():
    figures = launches.host_row(launches.STEPS["sprint-0.6b-step"], repeats=1, layers=2)
    assert {"diffusers", "pack"} <= set(figures) and all(ms > 0 for ms in figures.values())
    assert torch.device("cpu").type not in launches.card_layers.CARDS
