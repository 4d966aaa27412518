"""benchmarks/run.py runs, on tiny models, and its figures mean what they say."""

from __future__ import annotations

import json
import sys

import pytest
import tiny
import torch

sys.path.insert(0, str(tiny.REPOSITORY / "benchmarks"))

import growth
import half_decoding
import overhead
import roofline
import rows
import run

NAMES = ("prompt", "sprint-0.6b-step", "sana-1.6b-step-cfg", "dc-ae-decode", "wan-decode")


def test_each_kind_of_row_gives_every_figure(tmp_path, capsys):
    run.main([*NAMES, "--small", "--repeats", "1", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["row"] for row in figures["rows"]] == list(NAMES)
    for row in figures["rows"]:
        assert row["ours_s"] > 0 and row["theirs_s"] > 0 and row["ratio"] == row["ours_s"] / row["theirs_s"]
        assert row["ours_mb"] > 0 and row["theirs_mb"] > 0
        assert row["ours_error"] <= 2 * row["theirs_error"] > 0, "the pack's answer is diffusers' answer"
    assert len(capsys.readouterr().out.splitlines()) == len(NAMES) + 2


def test_what_bfloat16_changes_of_decoded_frames():
    found = half_decoding.difference(tiny.wan_vae(), half_decoding.VAES["Wan 2.1 VAE"], [torch.randn(1, 16, 2, 4, 6)])
    assert 0 < found["rms"] < found["largest"] < found["spread"]


def test_an_unknown_row_is_named(capsys):
    with pytest.raises(SystemExit):
        run.main(["dc-ae-decoed"])
    assert "no row dc-ae-decoed" in capsys.readouterr().err


def test_operations_are_those_of_the_products():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert run.operations(lambda: a @ b) == 2 * 3 * 5 * 7


def test_copies_share_weights_and_not_layers():
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    copy = rows.shared(layer)
    assert copy[0] is not layer[0] and copy[0].weight.data_ptr() == layer[0].weight.data_ptr()


def test_launches_count_products_bytes_and_no_views():
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    made = roofline.launches(lambda: (a @ b).t().add_(1).unsqueeze(0))
    assert [(k.operations, k.moved) for k in made] == [(2 * 3 * 5 * 7, 4 * (15 + 35 + 21)), (0, 4 * 2 * 21)]
    q = torch.empty(1, 2, 16, 8, device="meta")
    (one,) = roofline.launches(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert (one.operations, one.moved) == (4 * 2 * 16 * 16 * 8, 4 * 4 * q.numel())


def test_bounds():
    """A product that its operations bound, one that its bytes bound, and a norm that fuses away."""
    kernels = [roofline.Kernel(10**12, 1), roofline.Kernel(1, 10**9), roofline.Kernel(0, 10**9)]
    found = roofline.bounds(kernels, (1e13, 1e12))
    assert found == pytest.approx({"eager": 0.102, "compiled": 0.101, "graphed": 0.101})
    assert roofline.bounds([roofline.Kernel(1, 1)] * 10, (1e13, 1e12))["eager"] == pytest.approx(6e-5)


def test_a_line_and_its_residual():
    assert growth.line([1, 2, 3], [5.0, 7.0, 9.0]) == pytest.approx((2.0, 3.0, 0.0), abs=1e-12)
    assert growth.line([0, 1, 2, 3], [0.0, 1.0, 4.0, 9.0])[2] > 0.1, "a parabola is no line"


def test_overhead_is_what_nodes_take_beside_modules(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["overhead.py"])
    found = overhead.main(["--small", "--side", "128", "--images", "3"])
    assert found["inside_s"] > 0 and found["beside_s"] > 0 and found["between_s"] >= 0
    assert found["added"] == (found["beside_s"] + found["between_s"]) / found["inside_s"]
    assert "added" in capsys.readouterr().out


def test_overhead_counts_what_is_outside_of_modules():
    watch = overhead.Watch()
    watch.spent = {
        "SanaEncodePrompt": [(9.0, 1.0), (2.0, 1.5)],
        "VAEDecode": [(9.0, 1.0), (4.0, 3.0)],
        "SaveImage": [(1.0, 0.0)],
    }
    watch.first, watch.last = 10.0, 36.0
    assert watch.added() == pytest.approx((4.5, 1.5, 0.5))
