"""ComfyUI on a pretended card: the CPU's values however a model is loaded, and steps that wait for nothing.

All cases and more ways of loading are in tests/slow/comfyui/test_card.py.
"""

from __future__ import annotations

import card_cases
import card_process
import pytest

CASES = ["SCM", "int8 with a LoRA", "packed nvfp4 with a LoRA", "other layers patched", "image to video", "prompt"]
if card_process.keeps_packed():
    CASES += card_cases.SAVED
CASES += ["prompt of 8 bits", "prompt of 8 bits, patched and not", "preview", "Wan decodes"]


@pytest.fixture(scope="module", params=["full", "partial:60000", "dynamic:all"])
def results(request, home, sana_reference, video_references):
    card_cases.prepare(home)
    return request.param, card_process.results(home, request.param, CASES)


@pytest.mark.parametrize("name", CASES)
def test_values_and_waits(results, name):
    card_process.check_run(*results, name)
