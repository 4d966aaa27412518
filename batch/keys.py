"""The keys of a table's rows, in a file: a table of any length is read in the same memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from ..cli.calls import BadCall
from .columns import folded

DIGITS = 16
"""Digits of the hash of a row's inputs that are kept."""


class Keys:
    """The key of each row with its number and a hash of its inputs, in a temporary database of SQLite.

    The system removes its file with the process, however that ends.
    """

    def __init__(self) -> None:
        self._count = 0
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._base.execute("PRAGMA journal_mode = OFF")
        columns = "folded BLOB PRIMARY KEY, number INTEGER, line INTEGER, key TEXT, inputs BLOB"
        self._base.execute(f"CREATE TABLE rows ({columns}) WITHOUT ROWID")
        self._base.execute("BEGIN")  # one for all: without it, each row would be written by itself

    def __len__(self) -> int:
        return self._count

    def add(self, key: str, inputs: str, line: int) -> tuple[int, str] | None:
        """Add the next row. Line and key of an earlier one with this key, capitals aside; then nothing is added."""
        name = folded(key)
        row = (name, self._count, line, None if key.encode() == name else key, bytes.fromhex(inputs[:DIGITS]))
        with _space():
            added = self._base.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount
        if not added:
            line, spelt = self._base.execute("SELECT line, key FROM rows WHERE folded = ?", (name,)).fetchone()
            return line, name.decode() if spelt is None else spelt
        self._count += 1
        return None

    def find(self, key: str) -> tuple[int, str] | None:
        """The number of the row with a key, from 0, and the first digits of the hash of its inputs."""
        found = self._base.execute("SELECT number, inputs FROM rows WHERE folded = ?", (folded(key),)).fetchone()
        return (found[0], found[1].hex()) if found else None

    def close(self) -> None:
        """Release the file; the number of rows stays known."""
        self._base.close()


@contextmanager
def _space() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise BadCall(f"the table's keys need space in the system's folder for temporary files: {error}") from error
