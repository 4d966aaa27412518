"""Hundreds of damaged files of each kind end in our own error."""

from __future__ import annotations

import fuzz
import pytest


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files_end_in_our_own_error(kind):
    fuzz.check(10_000 if kind == "weights" else 500, kind)
