"""The keys of a table: found again with their rows, and each once."""

from __future__ import annotations

from hashlib import sha256

import pytest
from sana_nodes.batch.keys import DIGITS, Keys
from sana_nodes.cli.calls import BadCall


def digest(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def test_rows_are_found_by_their_keys():
    keys = Keys()
    names = ["a", "Ring", "reçu", "日本", "000001", "x" * 150]
    for number, name in enumerate(names):
        assert keys.add(name, digest(number), number + 2) is None
    assert len(keys) == len(names)
    for number, name in enumerate(names):
        assert keys.find(name) == (number, digest(number)[:DIGITS])
    assert keys.find("ring") == (1, digest(1)[:DIGITS]), "one file on systems that take them for the same"
    assert keys.find("b") is None
    keys.close()
    assert len(keys) == len(names)


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("Ring", "rING"), ("re\u0301", "r\u00e9")])
def test_a_key_that_is_there_is_told(first, second):
    keys = Keys()
    keys.add("other", digest(0), 2)
    keys.add(first, digest(1), 3)
    assert keys.add(second, digest(2), 9) == (3, first)
    assert len(keys) == 2 and keys.find(second) == (1, digest(1)[:DIGITS])


def test_no_space_for_the_keys_is_said():
    keys = Keys()
    keys._base.execute("PRAGMA max_page_count = 20")
    with pytest.raises(BadCall, match="keys need space in the system's folder for temporary files: .* full"):
        for number in range(10_000):
            keys.add(f"r{number}", digest(number), number)
