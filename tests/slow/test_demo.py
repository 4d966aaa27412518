"""The demo weights understand every shape, place and colour in 1, 2 and 4 steps."""

from __future__ import annotations

import drawing
import looking
import pytest


@pytest.fixture
def parts(host):
    return drawing.call("SanaLoadPipeline", pipeline="sana-sprint-demo")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_images_show_what_the_prompts_say(parts, steps):
    looking.check(parts, steps, dict(enumerate(looking.scenes())))
