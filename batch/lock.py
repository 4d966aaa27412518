"""One batch at a time in an output folder. The system releases the lock of a process that is killed."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from ..cli.calls import BadCall


class Lock:
    """Holds a file's lock until it is released; BadCall where another process holds it."""

    def __init__(self, path: Path):
        self._file = path.open("ab")
        try:
            _lock(self._file.fileno())
        except OSError as error:
            self._file.close()
            raise BadCall(f"another batch is writing into {path.parent.parent}; wait for it, or stop it") from error

    def release(self) -> None:
        self._file.close()


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        msvcrt: Any = importlib.import_module("msvcrt")  # by name: type checkers see the system's own modules alone
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
