"""Ten thousand damaged files end in our own error."""

from __future__ import annotations

import fuzz


def test_damaged_files_end_in_our_own_error():
    fuzz.check(10_000)
