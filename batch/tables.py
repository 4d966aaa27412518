"""Tables of rows: csv, tsv, jsonl and parquet, read row by row; a table that is wrong is said in words."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..cli.calls import BadCall
from ..cli.workflows import parse_json
from .urls import Url, local_or_url

LONGEST_CELL = 100_000
"""Characters of a cell."""

LONGEST_LINE = 1 << 20
"""Bytes of a line."""

MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks and the encoding that they tell."""

PARQUET_ROWS = 1024
"""Rows of a parquet file that are held at once."""

ENDS = {"\n": "LF", "\r\n": "CRLF", "": "none"}


class BadTable(BadCall):
    """A table that cannot be used."""


class BadRow(ValueError):
    """What is wrong with one row; the others are read."""


@dataclass(frozen=True)
class Row:
    """One row: the line on which it begins (in parquet and in Python its number), and its cells by column."""

    line: int
    cells: Mapping[str, Any]
    problem: str = ""


class Table:
    """Rows that can be read again and again. ``texts``: every cell is a text, as in csv."""

    texts = False
    name = "table"
    line_word = "line"

    def __iter__(self) -> Iterator[Row]:
        raise NotImplementedError


class Given(Table):
    """Rows that a program gives: a sequence of mappings."""

    line_word = "row"

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        for number, cells in enumerate(self.rows, 1):
            plain = {name: _plain(cell) for name, cell in cells.items()} if isinstance(cells, Mapping) else cells
            yield Row(number, plain)


def _plain(cell: Any) -> Any:
    """A number or text of NumPy, as pandas and Ray Data give them, as one of Python."""
    return cell.item() if type(cell).__module__ == "numpy" and getattr(cell, "shape", None) == () else cell


def open_table(table: str | Path | Sequence[Mapping[str, Any]]) -> Table:
    """The table of a file or URL, chosen by its suffix, or of a sequence of mappings; BadTable for an unusable one."""
    if not isinstance(table, (str, Path)):
        return Given(table)
    path = local_or_url(table)
    kinds = {".csv": Csv, ".tsv": Csv, ".jsonl": JsonLines, ".ndjson": JsonLines, ".parquet": Parquet}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise BadTable(f"{path} is not a table: its name must end with {', '.join(kinds)}")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise BadTable(f"cannot read {path}: {error.strerror or error}") from error
    return kind(path)


class _Lines:
    """The lines of a file as texts, each counted; BadTable for what no text file holds."""

    def __init__(self, path: Path | Url, file: BinaryIO):
        self.path, self.file, self.number, self.end = path, file, 0, ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        data = self.file.readline(LONGEST_LINE + 1)
        if not data:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            self._check_mark(data)
        if len(data) > LONGEST_LINE:
            raise BadTable(f"{self.path}, line {self.number}: the line has more than {LONGEST_LINE:,} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise BadTable(f"{self.path}, line {self.number}: it is not UTF-8 (byte {error.start + 1})") from error
        if "\0" in text:
            raise BadTable(f"{self.path}, line {self.number}: a zero byte is in it; this is not a text file")
        self.end = "\r\n" if text.endswith("\r\n") else "\n" if text.endswith("\n") else ""
        return text

    def _check_mark(self, data: bytes) -> None:
        encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
        if encoding:
            raise BadTable(
                f"{self.path} begins with a byte order mark ({encoding}); save it as UTF-8 without one"
                + (" (CSV UTF-8 of a spreadsheet writes one)" if encoding == "UTF-8" else "")
            )


class _Ends:
    """Row ends, which must all be of one kind."""

    def __init__(self, path: Path | Url):
        self.path, self.first = path, ""

    def check(self, line: int, end: str) -> None:
        self.first = self.first or end
        if end and end != self.first:
            raise BadTable(
                f"{self.path}, line {line}: it ends with {ENDS[end]} and the lines before with {ENDS[self.first]}: "
                "save the table again with one kind of line end"
            )


class _File(Table):
    def __init__(self, path: Path | Url):
        self.path, self.name = path, str(path)

    def __iter__(self) -> Iterator[Row]:
        try:
            with self.path.open("rb") as file:
                yield from self._rows(file)  # type: ignore[arg-type]
        except OSError as error:
            raise BadTable(f"cannot read {self.path}: {error.strerror or error}") from error

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        raise NotImplementedError


class Csv(_File):
    """csv with a header, separated by commas (.tsv: by tabs), quoted as RFC 4180 says."""

    texts = True

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        lines, ends = _Lines(self.path, file), _Ends(self.path)
        reader = csv.reader(lines, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
        header: list[str] | None = None
        while True:
            begin = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                raise BadTable(f"{self.path}, line {begin}: {_reason(error)}") from error
            ends.check(lines.number, lines.end)
            if not cells:
                continue
            if header is None:
                header = _header(self.path, cells)
                continue
            yield _row(begin, header, cells)
        if header is None:
            raise BadTable(f"{self.path} has no header: its first line must name the columns")


def _reason(error: csv.Error) -> str:
    message = str(error)
    if "field larger" in message:
        return f"a cell has more than {csv.field_size_limit():,} characters (is a quote not closed?)"
    if "new-line character" in message:
        return "a CR stands alone in it: save the table again with one kind of line end, LF or CRLF"
    if "unexpected end" in message:
        return "a quote that is opened here is not closed"
    return f"it is not csv: {message}"


def _header(path: Path | Url, names: list[str]) -> list[str]:
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise BadTable(f"{path}: column {number} has no name")
        if names.index(name) != number - 1:
            raise BadTable(f"{path}: two columns are called {name[:100]!r}")
    return names


def _row(line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(line, {}, f"it has {len(cells)} cells, and the header names {len(header)} columns")
    return Row(line, dict(zip(header, cells)))


class JsonLines(_File):
    """One JSON object a line."""

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        lines, ends = _Lines(self.path, file), _Ends(self.path)
        for text in lines:
            ends.check(lines.number, lines.end)
            if not text.strip():
                continue
            try:
                cells = parse_json(text.encode())
                problem = "" if isinstance(cells, dict) else "it is not a JSON object of columns"
            except (ValueError, RecursionError) as error:
                cells, problem = {}, f"it is not JSON: {error if isinstance(error, ValueError) else 'nested too deep'}"
            yield Row(lines.number, {} if problem else cells, problem)


class Parquet(_File):
    """parquet, with the package pyarrow."""

    line_word = "row"

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise BadTable(f"{self.path}: parquet needs pyarrow: pip install sana-nodes[tables]") from error
        try:
            opened, number = parquet.ParquetFile(file), 0
            _header(self.path, opened.schema_arrow.names)
            for batch in opened.iter_batches(PARQUET_ROWS):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(number, cells)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BadTable(f"{self.path} is not a whole parquet file: {reason[:300]}") from error
