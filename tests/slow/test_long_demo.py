"""The long video demo tells stories in which the direction changes, the colour, or both."""

from __future__ import annotations

import pytest
import watching


@pytest.fixture
def parts(host, home):
    return watching.load_long(home)


def test_stories_show_what_the_prompts_say(parts):
    watching.check_stories([watching.told(parts, story, seed) for seed, story in enumerate(watching.stories(12))])
