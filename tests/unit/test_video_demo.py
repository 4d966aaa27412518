"""The video demo weights understand what they are asked, from text and from a first frame, and come up in time.

A film for every shape and direction: tests/slow/test_video_demo.py.
"""

from __future__ import annotations

import json

import demo_command
import pytest
import tiny
import watching
from reading import decoded, tags_in
from video_language import FRAMES, Move, film, path


def test_the_eye_sees():
    for move in watching.moves():
        frames = film(move).movedim(1, -1)
        for place in (0, FRAMES // 2, FRAMES - 1):
            colour, shape, background, centre = watching.seen(frames[place])
            assert (colour, shape, background) == (move.colour, move.shape, move.background)
            assert max(abs(a - b) for a, b in zip(centre, path(move)[place])) < 0.05


@pytest.fixture
def parts(host, home):
    return watching.load(home)


def chosen(every: list[Move], *numbers: int) -> dict[int, Move]:
    return {number: every[number] for number in numbers}


def test_videos_show_what_the_prompts_say(parts):
    watching.check_text(parts, chosen(watching.moves(), 0, 8))


def test_a_first_frame_moves_as_the_prompt_says(parts):
    watching.check_first_frames(parts, chosen(watching.moves()[::2], 3))


def test_weights_are_small():
    size = sum(file.stat().st_size for file in tiny.VIDEO_DEMO.rglob("*") if file.is_file())
    assert size <= 12 * 1024**2


def test_demo_command_films_in_time(tmp_path):
    move = Move("green", "square", "left", "black")
    printed = demo_command.run(tmp_path, "--video", move.prompt, most=60)
    (file,) = tmp_path.rglob("*.mp4")
    assert printed == file
    assert not watching.wrong(move, decoded(file))[0]
    assert tags_in(file)["prompt"]["2"]["inputs"]["prompt"] == move.prompt


def test_the_examples_are_set_to_the_demo():
    from sana_nodes.tools.templates import templates

    names = [name for name, template in templates().items() if template.demo and name.startswith("sana_video_")]
    assert len(names) >= 3
    for name in names:
        nodes = json.loads((tiny.REPOSITORY / "example_workflows" / "api" / f"{name}.json").read_text()).values()
        assert "sana-video-demo" in [n["inputs"].get("pipeline") for n in nodes]
        for node in nodes:
            if node["class_type"] == "SanaFlowSample":
                assert {key: node["inputs"][key] for key in watching.SAMPLING} == watching.SAMPLING
