"""Where a batch's files and manifest go: a folder of this machine, or an object store."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..cli.calls import BadCall, check_output
from .lock import Lock, StoreLock
from .manifest import NAME, PARQUET, Manifest, line_of, short_hash, sync_folder
from .urls import Url

HIDDEN = ".sana-batch"
"""A folder in the output folder for files that are not whole yet, for the lock, and for lines in object stores."""

LINES_OF_PART = 1000
"""Lines in an object of each, after which they are gathered in one object."""


class Folder:
    """An output folder of this machine. ``path``: files; ``staging``: those that are not whole yet."""

    def __init__(self, path: Path):
        self.path, self.staging, self.url = path.absolute(), path.absolute() / HIDDEN / "work", None
        self.manifest: Manifest

    def __str__(self) -> str:
        return str(self.path)

    def discard(self) -> None:
        """Nothing was begun: nothing is left."""

    def begin(self) -> None:
        """Make the folder, and hold its lock; BadCall where another batch does."""
        check_output(self.path)
        try:
            (self.path / HIDDEN).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadCall(f"the output folder cannot be used: {error}") from error
        self._lock = Lock(self.path / HIDDEN / "lock")
        try:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.manifest = Manifest(self.path)
        except BaseException:
            self._lock.release()
            raise

    def end(self) -> None:
        """Release the folder."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.manifest.close()
        self._lock.release()

    def keep(self, files: Sequence[dict]) -> None:
        """Give staged files their names; they are durable then."""
        for file in files:
            staged, final = Path(file["path"]), self.path / file["name"]
            if "data" in file:  # from a machine that does not share this folder
                staged.parent.mkdir(parents=True, exist_ok=True)
                staged.write_bytes(file["data"])
            os.replace(staged, final)  # noqa: PTH105 - replaces on Windows too
        if files:
            sync_folder(self.path)

    def has(self, file: dict) -> bool:
        """Whether a file of the manifest is there, by its size."""
        try:
            return (self.path / file["name"]).stat().st_size == file["bytes"]
        except OSError:
            return False

    def remove(self, names: Sequence[str]) -> None:
        """Remove files that a row no longer has."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def where(self, name: str) -> str:
        return str(self.path / name)


class Bucket:
    """A folder of an object store. Workers put files there; the manifest is made in a folder of this machine."""

    def __init__(self, url: Url):
        self.url = url.text
        self._url = url
        self._sizes: dict[str, int] = {}
        self.path = Path(tempfile.mkdtemp(prefix="sana-batch-"))
        self.staging = self.path / "work"
        self.manifest: Manifest
        self._lock: StoreLock

    def __str__(self) -> str:
        return self.url

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def begin(self) -> None:
        """Hold the folder's lock, and read what is there; BadCall where another batch writes into it."""
        try:
            self._lock = StoreLock(self._url.child(f"{HIDDEN}/lock.json"), self.url)
            try:
                self.manifest = GatheredManifest(self.path, self._url, self._lock)
                self._sizes = self._url.files()
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise BadCall(f"the output {self.url} cannot be used: {error}") from error

    def end(self) -> None:
        self.manifest.close()
        self._lock.release()
        self.discard()

    def keep(self, files: Sequence[dict]) -> None:
        """Nothing: who made the files put them under their names."""

    def has(self, file: dict) -> bool:
        return self._sizes.get(file["name"]) == file["bytes"]

    def remove(self, names: Sequence[str]) -> None:
        if names:
            self._url.remove(*names)

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"


class GatheredManifest(Manifest):
    """A manifest whose lines are objects: one for each row, durable when it is put, and gathered now and then."""

    def __init__(self, folder: Path, url: Url, lock: StoreLock):
        self.url, self.rows, self.parts = url, url.child(f"{HIDDEN}/rows"), url.child(f"{HIDDEN}/parts")
        self.lock = lock
        (folder / NAME).write_bytes(url.child(NAME).read() or b"")
        super().__init__(folder)
        self._single: dict[str, bytes] = {}
        self._begin()

    def _begin(self) -> None:
        """The lines of an earlier call that was killed; the last one of a row counts."""
        parts, rows = self.parts.files(), self.rows.files()
        with self.path.open("ab") as file:
            for folder, names in ((self.parts, parts), (self.rows, rows)):
                for name in names:
                    file.write(folder.child(name).read() or b"")
        if parts or rows:
            self.url.child(NAME).put(self.path)
            self._forget([*parts], [*rows])

    def _forget(self, parts: Sequence[str], rows: Sequence[str]) -> None:
        """Remove objects whose lines are in another one."""
        for folder, names in ((self.parts, parts), (self.rows, rows)):
            for begin in range(0, len(names), LINES_OF_PART):
                folder.remove(*names[begin : begin + LINES_OF_PART])

    def append(self, record: dict) -> int:
        self.lock.check()
        line, name = line_of(record), f"{short_hash(record['key']):016x}.json"
        self.rows.child(name).write(line)
        self._single[name] = line
        if len(self._single) >= LINES_OF_PART:
            self._gather()
        return super().append(record)

    def _gather(self) -> None:
        number = max((int(name.partition(".")[0]) for name in self.parts.files()), default=0) + 1
        self.parts.child(f"{number:08}.jsonl").write(b"".join(self._single.values()))
        self._forget([], [*self._single])
        self._single.clear()

    def tidy(self, offsets: Sequence[int]) -> None:
        """Leave these lines, as one object."""
        self.lock.check()
        super().tidy(offsets)
        self.url.child(NAME).put(self.path)
        self._forget([*self.parts.files()], [*self.rows.files()])
        self._single.clear()

    def write_parquet(self) -> Path | None:
        written = super().write_parquet()
        if written is not None:
            self.url.child(PARQUET).put(written)
        return written


def output_at(output: Path | Url) -> Folder | Bucket:
    """The output of a path or URL."""
    return Folder(output) if isinstance(output, Path) else Bucket(output)
