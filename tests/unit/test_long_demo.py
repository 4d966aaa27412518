"""The long video demo: its weights, and the workflow of `sana-nodes demo --long`.

What it films: tests/slow/test_long_demo.py.
"""

from __future__ import annotations

import pytest
import tiny
import watching
from long_language import film
from sana_nodes.cli import demo
from sana_nodes.cli.calls import BadCall
from sana_nodes.networks.families import FAMILIES


def test_the_eye_sees_stories():
    for story in watching.stories():
        frames = film(watching.moves_of_frames(story)).movedim(1, -1)
        assert watching.wrong_story(story, frames) == ([], 0)
        for other in watching.stories():
            assert other == story or watching.wrong_story(other, frames)[0]


def test_weights_are_small():
    """At most 8 MB more."""
    size = sum(file.stat().st_size for file in tiny.LONG_DEMO.rglob("*") if file.is_file())
    assert size <= 8 * 1024**2


def test_its_parts_beside_the_transformer_are_the_video_demos():
    for part in (
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer.json",
    ):
        assert (tiny.LONG_DEMO / part).read_bytes() == (tiny.VIDEO_DEMO / part).read_bytes()
    assert FAMILIES["long_video"].config_class in (tiny.LONG_DEMO / "transformer" / "config.json").read_text()


@pytest.mark.parametrize("prompts", ["", "a ring >", " > ".join("abcdefghi")])
def test_prompts_that_fit_no_block_are_refused(prompts):
    with pytest.raises(BadCall, match="give 1 to 8, with > between them"):
        demo._story(prompts)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_prompts_is_told_in_order(count):
    graph = demo._story(" > ".join(f"prompt {i}" for i in range(count)))
    save, told = demo._first(graph, "SanaLongVideoSave")["inputs"], []
    link = save["positive"]
    while link:
        schedule = graph[link[0]]["inputs"]
        told.insert(0, (graph[schedule["conditioning"][0]]["inputs"]["prompt"], schedule["start"]))
        link = schedule.get("previous")
    assert told == [(f"prompt {i}", 20 * i / count) for i in range(count)]
