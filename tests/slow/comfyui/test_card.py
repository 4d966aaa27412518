"""ComfyUI on a pretended card: every case, whole, in part by several budgets, and with dynamic memory."""

from __future__ import annotations

import card_cases
import card_process
import pytest

CASES = [*card_cases.SAMPLINGS, *card_cases.CODINGS, *card_cases.OTHERS]
MODES = ["full", "partial:1", "partial:60000", "partial:200000", "dynamic:all", "dynamic:some", "dynamic:none"]


if card_process.keeps_packed():
    CASES += card_cases.SAVED


@pytest.fixture(scope="module")
def models(home, sana_reference, video_references):
    card_cases.prepare(home)
    return home


@pytest.fixture(scope="module", params=MODES)
def results(request, models):
    return request.param, card_process.results(models, request.param, CASES)


@pytest.mark.parametrize("name", CASES)
def test_values_and_waits(results, name):
    card_process.check_run(*results, name)


@pytest.fixture(scope="module", params=["full", "dynamic:all"])
def two_cards(request, models):
    if not card_process.is_dynamic():
        pytest.skip("this ComfyUI knows one card")
    return card_process.results(models, request.param, list(card_cases.TWO_CARDS))


@pytest.mark.parametrize("name", card_cases.TWO_CARDS)
def test_two_cards(two_cards, name):
    card_process.check(two_cards[name], name)
