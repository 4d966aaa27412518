"""docs/core-nodes.md has a row for every check; tests/comfyui/test_core_nodes.py checks what the rows say."""

from __future__ import annotations

import re

import core_checks_model  # noqa: F401  registers its checks
from core_checks import CHECKS
from core_elsewhere import ELSEWHERE
from core_table import FAMILIES, rows

ROWS = rows()


def test_every_row_has_a_check_and_every_check_a_row():
    assert set(ROWS) == set(CHECKS)


def test_every_row_that_does_not_work_everywhere_has_a_check_of_what_happens():
    partial = {name for name, row in ROWS.items() if {row[family] for family in FAMILIES} - {"works", "unsupported"}}
    assert partial == set(ELSEWHERE)


def test_every_row_says_what_happens():
    for name, row in ROWS.items():
        for family in FAMILIES:
            known = ("works", "unsupported", "not read", "images only", "video only")
            assert row[family] in known or re.fullmatch(r"works since [\d.]+", row[family]), f"{name}: {row}"
        assert row["said"], f"{name} says nothing"
