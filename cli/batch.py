"""``sana-nodes batch``: a table of rows through one workflow."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .calls import INTERRUPTED, BadCall, failure
from .console import printable, tell

INTERVAL = 10.0
"""Seconds between two lines of progress where no terminal shows one line that changes."""


def batch_command(options: argparse.Namespace) -> int:
    """Make the rows that are not done; the exit code: 1 where rows failed, 130 after Ctrl-C."""
    from ..batch.driver import Stopped, run

    columns = _columns(options.column)
    names = ("output", "key", "models", "input", "limit", "retry", "changed", "engine", "workers", "address", "batch")
    batch = run(
        options.workflow,
        options.table,
        settings=options.set,
        columns=columns,
        metadata=not options.no_metadata,
        **{name: getattr(options, name) for name in names},
    )
    for note in batch.notes:
        tell(f"note: {note}")
    tell(f"{batch.total:,} rows, {batch.done:,} done before, {batch.left:,} to make")
    progress = Progress(batch)
    batch.on_step = progress.step
    try:
        with _interrupts(batch) as interrupted:
            for record in batch:
                progress.count(record)
                _print(record, batch, options)
    except Stopped as error:
        return failure(error)
    progress.end()
    if interrupted:
        return INTERRUPTED
    return 1 if batch.failed else 0


def _columns(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, target = text.rpartition("=")
        if not equals or not name:
            raise BadCall(f"--column {text!r} is not of the form NAME=NODE.INPUT")
        found[name] = target
    return found


def _print(record: dict, batch, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(record))
        return
    if record["error"]:
        tell(f"row {record['row']} ({record['key']}): {record['error']}")
    for file in record["files"]:
        print(batch.output.where(file["name"]))


@contextmanager
def _interrupts(batch) -> Iterator[list]:
    """The first Ctrl-C finishes the rows at work, the second one drops them; yields a list that the first one fills."""
    interrupted: list[bool] = []

    def stop(*_):
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(True)
        tell("finishing the rows at work; Ctrl-C again drops them")
        batch.stop()

    try:
        usual = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not in the main thread, where no signal arrives
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, usual)


class Progress:
    """Rows, rate and time left on standard error: one line that changes in a terminal, else one now and then."""

    def __init__(self, batch):
        self.batch, self.made, self.begin = batch, 0, time.monotonic()
        self.first: float | None = None
        """When the first row was made: models loaded before, which is not counted in the rate."""
        self.terminal, self.shown = sys.stderr.isatty(), self.begin

    def count(self, record: dict) -> None:
        self.made += 1
        now = time.monotonic()
        self.first = self.first or now
        if self.terminal and now - self.shown >= 0.2:
            print(f"\r{self._text(now)}\x1b[K", end="", file=sys.stderr, flush=True)
            self.shown = now
        elif not self.terminal and now - self.shown >= INTERVAL:
            tell(self._text(now))
            self.shown = now

    def step(self, text: str) -> None:
        """A row on a server is so far; shown at the end of the line in a terminal alone."""
        now = time.monotonic()
        if self.terminal and now - self.shown >= 0.2:
            print(f"\r{self._text(now)}; {printable(text)}\x1b[K", end="", file=sys.stderr, flush=True)
            self.shown = now

    def _text(self, now: float) -> str:
        rate = self._rate(now)
        left = duration((self.batch.left - self.made) / rate) if rate else "?"
        failed = f", {self.batch.failed:,} failed" if self.batch.failed else ""
        return printable(f"{self.made:,} of {self.batch.left:,} rows, {rate:.3g} rows/s, {left} left{failed}")

    def _rate(self, now: float) -> float:
        """Rows per second."""
        if self.made > 1 and self.first and now > self.first:
            return (self.made - 1) / (now - self.first)
        return self.made / max(now - self.begin, 1e-6)

    def end(self) -> None:
        if self.terminal and self.made:
            print("\r\x1b[K", end="", file=sys.stderr)
        spent = time.monotonic() - self.begin
        rate = f" ({self._rate(time.monotonic()):.3g} rows/s)" if self.made else ""
        batch = self.batch
        left = batch.total - batch.done - batch.failed
        rest = [f"{batch.failed:,} failed"] * bool(batch.failed) + [f"{left:,} not made yet"] * bool(left)
        tell(f"{self.made:,} rows in {duration(spent)}{rate}; {', '.join([f'{batch.done:,} done in all', *rest])}")


def duration(seconds: float) -> str:
    """Seconds for a person: 5 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
