"""A few hundred damaged files end in our own error; ten thousand do in tests/slow/test_fuzz.py."""

from __future__ import annotations

import fuzz


def test_damaged_files_end_in_our_own_error():
    fuzz.check(200)
