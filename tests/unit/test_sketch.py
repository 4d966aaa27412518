"""Sketches: strokes to an image and a mask."""

from __future__ import annotations

import json

import drawing
import pytest
import torch
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.media import sketch


def text(*strokes, paper="#000000") -> str:
    return json.dumps({"v": 1, "paper": paper, "strokes": list(strokes)})


LINE = {"c": "#ff0000", "w": 1000, "p": [2000, 5000, 8000, 5000]}


@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
def test_a_stroke_is_where_it_was_made(size):
    image, mask = sketch.render(text(LINE), *size)
    assert image.shape == (1, size[1], size[0], 3) and mask.shape == (1, size[1], size[0])
    middle = image[0, size[1] // 2]
    assert middle[size[0] // 2].tolist() == [1.0, 0.0, 0.0] and middle[2].tolist() == [0.0, 0.0, 0.0]
    width = 0.1 * min(size)
    covered = mask[0, :, size[0] // 2].sum().item()
    assert abs(covered - width) <= 1.0
    ends = mask[0, size[1] // 2].sum().item()
    assert abs(ends - (0.6 * size[0] + width)) <= 1.5, "the ends are round"


def test_edges_are_smooth_and_what_is_outside_stays():
    image, mask = sketch.render(text({"c": "#ffffff", "w": 900, "p": [1000, 1000, 9000, 8000]}), 96, 96)
    between = (mask > 0.05) & (mask < 0.95)
    assert 20 < between.sum() < 400
    assert torch.allclose(image[..., 0], mask, atol=0.01)


def test_the_eraser_takes_colour_and_mask():
    image, mask = sketch.render(text(LINE, {"w": 2000, "e": 1, "p": [5000, 5000]}, paper="#ffffff"), 64, 64)
    assert mask[0, 32, 32] == 0 and image[0, 32, 32].tolist() == [1.0, 1.0, 1.0]
    assert mask[0, 32, 16] == 1


def test_an_empty_sketch_is_black_paper():
    image, mask = sketch.render("", 64, 32)
    assert image.abs().max() == 0 == mask.max() and image.shape == (1, 32, 64, 3)


WRONG = ["x", "[]", '{"strokes": 1}', text({"c": "red", "w": 1, "p": [0, 0]}), text({"c": "#ffffff", "w": 1, "p": [1]})]


@pytest.mark.parametrize("value", [*WRONG, text({"c": "#ffffff", "w": "x", "p": [1, 2]}), '{"strokes": [NaN]}'])
def test_other_texts_are_refused_before_anything_runs(value):
    with pytest.raises(ValueError, match="no canvas of Sana Sketch made"):
        drawing.call("SanaSketch", sketch=value)
    assert "no canvas" in NODE_CLASS_MAPPINGS["SanaSketch"].VALIDATE_INPUTS(sketch=value)


def test_too_much_is_refused():
    with pytest.raises(ValueError, match="more than 200,000 points"):
        sketch.parse(text(*[{"c": "#ffffff", "w": 1, "p": [1, 2] * 1001}] * 200))
    with pytest.raises(ValueError, match="characters"):
        sketch.parse(" " * sketch.LONGEST + "x{")


def test_numbers_beyond_the_canvas_cost_nothing():
    image, _ = sketch.render(text({"c": "#ffffff", "w": 1e12, "p": [-1e300, 1e300, 1e9, -1e9]}), 64, 64)
    assert image.shape == (1, 64, 64, 3)


def test_the_node(host):
    image, mask = drawing.call("SanaSketch", sketch=text(LINE), width=64, height=96)
    assert image.shape == (1, 96, 64, 3) and mask.shape == (1, 96, 64)
    shown = drawing.call("SanaSketch", width=64, height=64, image=torch.rand(1, 32, 32, 3))
    if host.name == "comfyui":
        assert shown["ui"]["sana_underlay"][0].endswith(".png") and shown["result"][0].abs().max() == 0
    else:
        assert len(shown) == 2
