"""File names that one run alone has, however many runs save under one prefix.

A name is claimed by making its hidden part file with O_EXCL, which is one step on every file system. What is
written goes into the part file, and only a whole file gets the final name, in a step that replaces nothing:
a hard link, and where the file system has none, an O_EXCL file that the part file then replaces. So a run that
is killed leaves a hidden part file, never a visible file that is empty or cut short; part files that nobody has
touched for a day are removed. The part file's name is made from the final name and not from the process, or two
runs could write the same file; it is short enough wherever the final name is.

Of several names the last is claimed first: a run that comes second meets the end of the range and goes beyond it,
so that one batch's numbers are consecutive.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

PART_SUFFIX = ".sana-part"
ABANDONED = 24 * 60 * 60
"""Seconds after which a part file that nobody has written to is left over from a run that was killed."""

READABLE = 100
"""Bytes of the final name that the part file's name repeats."""

Names = Callable[[int], Path]


class CannotWrite(OSError):
    """A file that could not be written, with the reason; nothing of it is left."""


class Claim:
    """``path`` is this run's until it is published or released; ``part`` is the hidden file to write meanwhile."""

    def __init__(self, names: Names, number: int, part: Path):
        self.names, self.number, self.part, self.over = names, number, part, False

    @property
    def path(self) -> Path:
        return self.names(self.number)

    def touch(self) -> None:
        """Show other runs that this one is at work."""
        os.utime(self.part)

    def publish(self) -> Path:
        """Give the part file its final name, or the next free one if another program has taken it meanwhile."""
        while True:
            try:
                _rename_to_new(self.part, self.path)
                self.over = True
                return self.path
            except FileExistsError:
                self._move_on()

    def release(self) -> None:
        """Give an unpublished name up; after that a part file of this name is another run's."""
        if not self.over:
            self.over = True
            self.part.unlink(missing_ok=True)

    def _move_on(self) -> None:
        following = _claim_range(self.names, 1, self.number + 1)[0]
        self.part.replace(following.part)
        self.number, self.part = following.number, following.part


@contextmanager
def claimed(names: Path | Names, count: int = 1) -> Iterator[list[Claim]]:
    """``count`` consecutive names that are free, in order; what is not published by the end is released.

    ``names``: one Path, or a function from 0, 1, 2, … to the Paths to try. Raises CannotWrite where the one
    Path exists already, and OSError where its folder cannot be written.
    """
    names = _only(names) if isinstance(names, Path) else names
    names(0).parent.mkdir(parents=True, exist_ok=True)
    sweep(names(0).parent)
    claims = _claim_range(names, count)
    try:
        yield claims
    finally:
        for claim in claims:
            claim.release()


def sweep(folder: Path) -> None:
    """Remove the part files that runs which were killed left in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(PART_SUFFIX):
                with suppress(OSError):  # another run removed it first, or it may not be removed
                    if time.time() - entry.stat().st_mtime > ABANDONED:
                        Path(entry.path).unlink()


def part_of(path: Path) -> Path:
    """The hidden part file of a final name; names that one file system takes for the same share it."""
    known = unicodedata.normalize("NFC", path.name).casefold()
    readable = os.fsencode(path.name)[:READABLE].decode("utf-8", "ignore")
    return path.with_name(f".{readable}-{sha256(os.fsencode(known)).hexdigest()[:16]}{PART_SUFFIX}")


def _only(path: Path) -> Names:
    def name(number: int) -> Path:
        if number:
            raise CannotWrite(f"cannot write {path}: it exists already, or another run is writing it")
        return path

    return name


def _claim_range(names: Names, count: int, start: int = 0) -> list[Claim]:
    while True:
        with ExitStack() as undo:
            claims: list[Claim] = []
            for number in reversed(range(start, start + count)):
                part = _claim(names(number))
                if part is None:
                    break
                claims.append(Claim(names, number, part))
                undo.callback(claims[-1].release)
            if len(claims) == count:
                undo.pop_all()
                return claims[::-1]
        start = number + 1


def _claim(path: Path) -> Path | None:
    """The part file of a path, made now; None where the path or its claim exists."""
    part = part_of(path)
    try:
        part.touch(exist_ok=False)
    except FileExistsError:
        return None
    if os.path.lexists(path):  # asked after the claim: a run that published it has given its own claim up
        part.unlink(missing_ok=True)
        return None
    return part


def _rename_to_new(part: Path, path: Path) -> None:
    """Rename a file; FileExistsError where the new name is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # no hard links: exFAT, some network shares, Android
        path.touch(exist_ok=False)
        try:
            part.replace(path)
        except BaseException:
            path.unlink()
            raise
    else:
        part.unlink()
