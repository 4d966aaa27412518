"""A few damaged files of each kind end in our own error; five hundred do in tests/slow/test_fuzz.py."""

from __future__ import annotations

import fuzz


def test_damaged_files_end_in_our_own_error():
    fuzz.check(30)


def test_a_kind_without_loads_or_with_one_message_is_shallow():
    assert fuzz.Outcomes("x", loaded=0, messages={"a": 1, "b": 1, "c": 1}).shallow
    assert fuzz.Outcomes("x", loaded=9, messages={"a": 9}).shallow
    assert not fuzz.Outcomes("x", loaded=1, messages={"a": 1, "b": 1, "c": 1}).shallow
