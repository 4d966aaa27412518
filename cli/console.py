"""Standard output and error that neither a closed pipe nor a console without our letters can stop."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CLOSED = (errno.EPIPE, errno.EINVAL)
"""What writing into a closed pipe ends with; EINVAL on Windows."""


class CannotPrint(OSError):
    """Standard output cannot be written, and not because its reader has gone: a full disk."""


class _Tolerant(io.RawIOBase):
    """A stream's bytes; what nobody reads any more is dropped, so that a run continues to its end."""

    def __init__(self, buffer, name: str):
        self.buffer, self.label = buffer, name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.buffer.fileno()

    def isatty(self) -> bool:
        return self.buffer.isatty()

    def close(self) -> None:
        """Stays open: ComfyUI puts its own text streams over these bytes and drops ours."""

    def write(self, data) -> int:
        try:
            self.buffer.write(data)
            self.buffer.flush()
        except OSError as error:
            self._drop()
            if error.errno not in CLOSED and self.label == "stdout":
                raise CannotPrint(f"cannot write to standard output: {error.strerror}") from error
        return len(data)

    def _drop(self) -> None:
        """Let the descriptor lead nowhere: Python flushes what is left when it ends."""
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
            os.dup2(nowhere.fileno(), self.buffer.fileno())


def _tolerant(name: str):
    stream = getattr(sys, name)
    if not hasattr(stream, "buffer"):
        return stream
    stream.flush()
    options = {"encoding": stream.encoding, "errors": "backslashreplace", "line_buffering": True, "write_through": True}
    return io.TextIOWrapper(_Tolerant(stream.buffer, name), **options)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """sys.stdout and sys.stderr that write what they can: other letters as escapes, into a closed pipe nothing."""
    usual = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _tolerant("stdout"), _tolerant("stderr")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = usual


def printable(line: str) -> str:
    """A line in which what could steer a terminal is an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def tell(text: str) -> None:
    """Messages of ours on standard error, one a line."""
    for line in text.splitlines() or [""]:
        print(f"sana-nodes: {printable(line)}", file=sys.stderr, flush=True)
