"""The long video demo tells stories in which the direction changes, the colour, or both."""

from __future__ import annotations

import demo_command
import pytest
import watching
from reading import decoded, tags_in


@pytest.fixture
def parts(host, home):
    return watching.load_long(home)


def test_stories_show_what_the_prompts_say(parts):
    watching.check_stories([watching.told(parts, story, seed) for seed, story in enumerate(watching.stories(12))])


def test_demo_command_films_a_story_in_time(tmp_path):
    story = watching.stories(12)[6]  # one that comes out well: nine in ten prompts do
    prompts = " > ".join(move.prompt for move in story)
    printed = demo_command.run(tmp_path, "--long", prompts, most=90)
    (file,) = tmp_path.rglob("*.mp4")
    assert printed == file
    frames = decoded(file)
    assert len(frames) == watching.LONG_FRAMES and not watching.wrong_story(story, frames)[0]
    told = [node["inputs"]["prompt"] for node in tags_in(file)["prompt"].values() if "prompt" in node["inputs"]]
    assert sorted(told) == sorted(move.prompt for move in story)
