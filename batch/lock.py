"""One batch at a time in an output folder or in a folder of an object store."""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from ..cli.calls import BadCall
from .urls import Url

logger = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two signs of life of a batch that writes into an object store."""

SILENCE = 30.0
"""Seconds without one after which a batch counts as ended."""


class Lock:
    """Holds a file's lock until it is released; BadCall where another process holds it.

    The system releases the lock of a process that is killed.
    """

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


class StoreLock:
    """Holds an object that names this process; BadCall where another batch does so and lives.

    Object stores lend no lock that ends with a process: the holder writes the object again every BEAT seconds, and who
    finds one that does not change for SILENCE seconds takes it. Nobody's clock counts. A holder that was held up for so
    long finds that the object is another one's: ``check`` tells it.
    """

    def __init__(self, url: Url, output: str):
        self.url, self.output, self.lost = url, output, False
        self._facts = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}
        self._facts["began"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._beats, self._ending = 0, threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._beat, name="sana-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """OSError where another batch has taken the lock: this one was silent for too long."""
        if self.lost:
            raise OSError(f"another batch has begun to write into {self.output}, as this one gave no sign of life")

    def release(self) -> None:
        """Remove the object, if it is this batch's."""
        self._ending.set()
        self._thread.join()
        try:
            if self._is_ours(self.url.read()):
                self.url.remove_self()
        except OSError:
            pass  # the next batch finds that it no longer changes

    def _text(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._facts, "beats": self._beats}).encode()

    def _take(self) -> None:
        if not self._create():
            if self._is_silent():
                self.url.remove_self()
            if not self._create():
                raise self._held(self.url.read())

    def _create(self) -> bool:
        """Whether the object was made by this process; the answer to a first try may have been lost."""
        return self.url.create(self._text()) or self._is_ours(self.url.read())

    def _is_silent(self) -> bool:
        """Whether the object has not changed for SILENCE, and not just gone; BadCall where it changes."""
        seen, begin = self.url.read(), time.monotonic()
        text = "%s began a batch into %s: waiting %.0f s for a sign of it"
        if seen is not None:
            logger.warning(text, _owner(seen), self.output, SILENCE)
        while seen is not None and time.monotonic() - begin < SILENCE:
            time.sleep(min(1.0, SILENCE / 4))
            found = self.url.read()
            if found is not None and found != seen:
                raise self._held(found)
            seen = found
        return seen is not None

    def _held(self, found: bytes | None) -> BadCall:
        return BadCall(f"another batch is writing into {self.output} ({_owner(found)}); wait for it, or stop it")

    def _is_ours(self, found: bytes | None) -> bool:
        return found is not None and _facts(found).get("id") == self._facts["id"]

    def _beat(self) -> None:
        while not self._ending.wait(BEAT):
            try:
                found = self.url.read()
                if self._is_ours(found):
                    self.url.write(self._text())
                elif found is not None or not self._create():
                    self.lost = True
                    return
            except OSError:
                pass  # a network that is away for a while; the rows say so too


def _facts(found: bytes) -> dict:
    try:
        facts = json.loads(found)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _owner(found: bytes | None) -> str:
    facts = _facts(found or b"")
    return f"process {facts.get('process', '?')} on {facts.get('host', '?')}, {facts.get('began', '?')}"
