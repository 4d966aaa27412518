"""Files at fsspec URLs such as s3://bucket/folder, beside those of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOSYS
from io import BufferedReader, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any

from ..cli.calls import BadCall
from ..model_loaders.files.whole import written_whole

PACKAGES = {"s3": "sana-nodes[s3]", "s3a": "sana-nodes[s3]"}
"""What is installed for a protocol, where the pack has an extra of it."""

BLOCK = 1 << 18
"""Bytes that are read at a time."""


def is_url(name: object) -> bool:
    """Whether a name is a URL: file:// is one too, but means this machine (see local_or_url)."""
    return isinstance(name, str) and "://" in name


def local_or_url(name: str | Path) -> Path | Url:
    """A path of this machine, or the Url of a name with a protocol; BadCall where that is not known or installed."""
    if isinstance(name, str) and name.startswith("file://"):
        return Path(name.removeprefix("file://"))
    return Url(str(name)) if is_url(name) else Path(name)


class _Raw(RawIOBase):
    """A file of fsspec with all that io.BufferedReader needs: some of theirs take no limit for a line."""

    def __init__(self, url: Url, file: Any):
        self.url, self.file = url, file

    def readinto(self, buffer) -> int:
        with self.url.errors():
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, *start: int) -> int:
        return self.file.seek(offset, *start)

    def tell(self) -> int:
        return self.file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Url:
    """A file or folder of an object store. What goes wrong with it is an OSError, whatever its library raises.

    Files appear whole or not at all, and under their own names: such stores rename by copying.
    """

    def __init__(self, text: str):
        self.text = text.rstrip("/")
        self.protocol = text.partition("://")[0]
        self._fs: Any = None
        self._connect()

    def _connect(self) -> None:
        from fsspec.core import url_to_fs

        try:
            self._fs, self.path = url_to_fs(self.text)
        except ImportError as error:
            package = PACKAGES.get(self.protocol, "its package")
            raise BadCall(f"{self.text}: install {package} for {self.protocol}:// ({error})") from error
        except ValueError as error:
            raise BadCall(f"{self.text}: {error}") from error

    def __reduce__(self):
        return Url, (self.text,)

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def child(self, name: str) -> Url:
        """What is called ``name`` below a folder."""
        return Url(f"{self.text}/{name}")

    @contextmanager
    def open(self, mode: str = "rb") -> Iterator[Any]:
        """The file, for reading."""
        with self.errors():
            file = self._fs.open(self.path, mode)
        with file, BufferedReader(_Raw(self, file), BLOCK) as reader:
            yield reader

    def read(self) -> bytes | None:
        """All of a file, None where there is none."""
        try:
            with self.errors():
                return self._fs.cat_file(self.path)
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        """Make a file; it is durable when this returns."""
        with self.errors():
            self._fs.pipe_file(self.path, data)

    def create(self, data: bytes) -> bool:
        """Make a file that is not there; whether this was so. Of two callers at once one does, where the store can."""
        try:
            with self.errors():
                self._fs.pipe_file(self.path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if self.read() is not None:  # some stores say so in other words
                return False
            if error.errno != ENOSYS and not isinstance(error.__cause__, (TypeError, NotImplementedError)):
                raise
            self.write(data)
        return True

    def put(self, file: Path) -> None:
        """Make a file of one of this machine."""
        with self.errors():
            self._fs.put_file(str(file), self.path)

    def get(self, file: Path) -> None:
        """Copy to a file of this machine, which has its name when it is whole."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part, self.errors():
            self._fs.get_file(self.path, str(part))

    def size(self) -> int | None:
        """Bytes of a file, None where there is none."""
        try:
            with self.errors():
                self._fs.invalidate_cache()
                found = self._fs.info(self.path)
        except FileNotFoundError:
            return None
        return found["size"] if found["type"] == "file" else None

    def remove(self, *names: str) -> None:
        """Remove files of a folder, in one call where the store can; those that are gone already are no error."""
        paths = [f"{self.path}/{name}" for name in names]
        try:
            with self.errors():
                self._fs.rm(paths)
        except FileNotFoundError:
            for path in paths:
                with self.errors(), suppress(FileNotFoundError):
                    self._fs.rm_file(path)

    def remove_self(self) -> None:
        """Remove this file; no error where it is gone already."""
        with self.errors(), suppress(FileNotFoundError):
            self._fs.rm_file(self.path)

    def files(self, deep: bool = False) -> dict[str, int]:
        """Names and bytes of the files in a folder, ``deep``: and below it, in the order of their names."""
        try:
            with self.errors():
                self._fs.invalidate_cache()
                found = self._fs.find(self.path, maxdepth=None if deep else 1, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.path.rstrip("/")) + 1
        return {path[start:]: facts["size"] for path, facts in sorted(found.items()) if len(path) >= start}

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What the store's library raises, as an OSError."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # each store's library raises its own classes where a network fails
            raise OSError(f"{self.text}: {error}") from error
