"""What a pretended card counts: launches, waits and transfers, with the lines that asked for them."""

from __future__ import annotations

import collections
import sys
import weakref
from pathlib import Path

SKIPPED = ("/torch/", "/pretend_", "/contextlib.py")
"""Parts of paths of files that only pass a call on."""

LINES = 3
"""Calls that a site names, the innermost first."""


def site() -> str:
    """Where the code is that asked, without PyTorch's own."""
    frame, found = sys._getframe(1), []
    while frame is not None and len(found) < LINES:
        file = frame.f_code.co_filename.replace("\\", "/")
        if not any(part in file for part in SKIPPED):
            found.append(f"{'/'.join(Path(file).parts[-3:])}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)


class Counts:
    """``launches`` by operator; ``waits`` and ``moves`` by site; ``moved``: bytes to the card and back."""

    def __init__(self):
        self.launches, self.waits, self.moves, self.moved = (collections.Counter() for _ in range(4))
        self._pinned = weakref.WeakSet()

    def clear(self) -> None:
        for counter in (self.launches, self.waits, self.moves, self.moved):
            counter.clear()

    def copy(self) -> Counts:
        made = Counts()
        for name in ("launches", "waits", "moves", "moved"):
            setattr(made, name, getattr(self, name).copy())
        return made

    def launch(self, name: str) -> None:
        self.launches[name] += 1

    def wait(self, why: str) -> None:
        self.waits[f"{why}: {site()}"] += 1

    def move(self, tensor, to_card: bool, non_blocking: bool) -> None:
        """A transfer; the program waits for it unless it is asynchronous and to or from pinned memory."""
        way = "to the card" if to_card else "to the CPU"
        where = f"{way}: {site()}"
        self.moves[where] += 1
        self.moved[way] += tensor.numel() * tensor.element_size()
        if not (non_blocking and to_card and self.is_pinned(tensor)):
            self.waits[f"copy {where}"] += 1

    def pin(self, tensor):
        self._pinned.add(tensor.untyped_storage())
        return tensor

    def is_pinned(self, tensor) -> bool:
        return tensor.untyped_storage() in self._pinned
