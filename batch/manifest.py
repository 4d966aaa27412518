"""The manifest of a batch: a line for each row, durable before the next one, so that a killed batch can continue."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..cli.calls import BadCall
from .columns import folded

NAME = "manifest.jsonl"
PARQUET = "manifest.parquet"
PARQUET_LINES = 4096
"""Lines that are held while manifest.parquet is written."""

MISSING, FAILED, DONE = 0, 1, 2


def short_hash(key: str) -> int:
    """64 bits of a key's hash; keys that differ in capitals alone have the same."""
    from hashlib import sha256

    return int.from_bytes(sha256(folded(key)).digest()[:8], "big")


class Manifest:
    """``manifest.jsonl`` in a folder. A line that a killed process left incomplete is removed when it is opened."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._file = self.path.open("ab", buffering=0)
        self._cut_tail()

    def close(self) -> None:
        self._file.close()

    def _cut_tail(self) -> None:
        size = end = self._file.seek(0, os.SEEK_END)
        with self.path.open("rb") as file:
            found = -1
            while end > 0 and found < 0:
                begin = max(0, end - 65536)
                file.seek(begin)
                found = file.read(end - begin).rfind(b"\n")
                end = begin + found + 1 if found >= 0 else begin
        if end < size:
            os.truncate(self.path, end)
            os.fsync(self._file.fileno())

    def lines(self) -> Iterator[tuple[int, dict]]:
        """The offset and the record of every line; BadCall for a line that is not ours."""
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield offset, self._record(number, line)
                offset += len(line)

    def _record(self, number: int, line: bytes) -> dict:
        try:
            record = json.loads(line)
            if isinstance(record["key"], str) and {"inputs", "workflow", "files", "error"} <= record.keys():
                return record
        except (ValueError, TypeError, KeyError):
            pass
        raise BadCall(f"{self.path}, line {number}: it is not a line of a manifest; move the file away or repair it")

    def read(self, offset: int) -> dict:
        """The record at an offset."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def append(self, record: dict) -> int:
        """Write a line and wait until it is on the disk; its offset. OSError leaves the file as it was."""
        offset, line = self._file.seek(0, os.SEEK_END), line_of(record)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except BaseException:
            os.truncate(self.path, offset)
            raise
        return offset

    def tidy(self, offsets: Sequence[int]) -> None:
        """Leave the lines at these offsets, in this order; a negative one stands for no line."""
        part = self.path.with_name(f".{NAME}.part")
        with self.path.open("rb") as file:
            if _is_tidy(file, offsets):
                return
            with part.open("wb") as out:
                for offset in offsets:
                    if offset >= 0:
                        file.seek(offset)
                        out.write(file.readline())
        sync_file(part)
        self._file.close()
        part.replace(self.path)
        sync_folder(self.path.parent)
        self._file = self.path.open("ab", buffering=0)

    def write_parquet(self) -> Path | None:
        """manifest.parquet with the same lines, where pyarrow is installed."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            return None
        schema, rows = _schema(pyarrow), []
        part, final = self.path.with_name(f".{PARQUET}.part"), self.path.with_name(PARQUET)
        with parquet.ParquetWriter(part, schema) as writer:
            for _, record in self.lines():
                rows.append({**record, "versions": json.dumps(record["versions"], sort_keys=True)})
                if len(rows) == PARQUET_LINES:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        sync_file(part)
        part.replace(final)
        return final


def _is_tidy(file: BinaryIO, offsets: Sequence[int]) -> bool:
    expected = 0
    for offset in offsets:
        if offset < 0:
            continue
        if offset != expected:
            return False
        file.seek(offset)
        expected += len(file.readline())
    return expected == file.seek(0, os.SEEK_END)


def line_of(record: dict) -> bytes:
    """A record as a line."""
    return json.dumps(record, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _schema(pyarrow):
    text, whole = pyarrow.string(), pyarrow.int64()
    file = pyarrow.struct([("name", text), ("bytes", whole), ("sha256", text)])
    names: dict[str, Any] = {"key": text, "row": whole, "inputs": text, "workflow": text, "seed": pyarrow.uint64()}
    names |= {"files": pyarrow.list_(file), "seconds": pyarrow.float64(), "device": text, "versions": text}
    return pyarrow.schema([*names.items(), ("error", text), ("attempts", whole), ("ended", text)])


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until a folder's names are on the disk; Windows has no such call."""
    if os.name != "nt":
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
