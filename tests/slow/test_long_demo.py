"""The long video demo tells stories in which the direction changes, the colour, or both."""

from __future__ import annotations

import os
import subprocess
import sys

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
