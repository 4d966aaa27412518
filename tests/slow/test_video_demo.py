"""The video demo weights understand every shape and every direction, from text and from a first frame."""

from __future__ import annotations

import pytest
import watching


@pytest.fixture
def parts(host, home):
    return watching.load(home)


def test_videos_show_what_the_prompts_say(parts):
    watching.check_text(parts, dict(enumerate(watching.moves())))


def test_a_first_frame_moves_as_the_prompt_says(parts):
    watching.check_first_frames(parts, dict(enumerate(watching.moves()[::2])))
