"""The batch itself: what is done, what is left, and each row's files and line made durable in order."""

from __future__ import annotations

import shutil
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..cli.calls import BadCall
from ..cli.workflows import apply_settings, read_workflow
from .checking import EmbeddedChecks, Rows, read_all
from .cluster import RayEngine
from .columns import SEEDS, Columns, digest
from .keys import DIGITS, Keys
from .manifest import DONE, FAILED, MISSING
from .ordering import ordered
from .outputs import Bucket, Folder, output_at
from .servers import ServerChecks, ServersEngine
from .tables import BadRow, BadTable, Table, open_table
from .urls import Url, local_or_url
from .worker import Job, Local, Made, Stopped, Task, with_inputs

TOGETHER = 8
"""Rows that are sampled together where memory allows it: more gained little, and an end drops so many rows."""

ENGINES: dict[str, Callable[..., Any]] = {"local": Local, "ray": RayEngine, "comfyui": ServersEngine}
CHANGED = ("stop", "again", "keep")
WHAT_THEN = {"again": "are made again", "keep": "stay as they are"}
SAME, OTHER_WORKFLOW, OTHER_INPUTS, LOST = range(4)
"""What is found of a row that is done."""


class Batch:
    """The rows of a table that are not done. Iterating makes them, and yields each row's line of the manifest.

    ``total`` rows of the table, ``done`` and ``failed`` so far; ``left`` in this call; ``notes`` for a person. A
    KeyboardInterrupt drops the row at work and leaves nothing of it; ``stop()`` finishes it first. ``on_step(text)``,
    if it is set, is called by other threads with the steps of rows on servers.
    """

    def __init__(
        self,
        rows: Rows,
        keys: Keys,
        job: Job,
        engine: Callable[[], Any],
        output: Folder | Bucket,
        options: dict,
    ):
        self.rows, self.job, self.output, self.manifest = rows, job, output, output.manifest
        self.notes: list[str] = []
        self.total, self._options = len(keys), options
        self._engine: Callable[[], Any] | None = engine
        self._workflow = digest({key: _plain(node) for key, node in job.graph.items()})
        self._state, self._offsets = bytearray(self.total), array("q", [-1]) * self.total
        self._gone: list[int] = []
        self._again: deque[Task] = deque()
        self.on_step: Callable[[str], None] | None = None
        self._stopping = False
        self._look_back(keys)
        keys.close()
        waiting = self.total - self._state.count(DONE)
        limit = options["limit"]
        self.left = waiting if limit is None else min(limit, waiting)
        self._taken, self._source = 0, ordered(self._tasks(), rows.columns.alike if job.batch > 1 else None)

    @property
    def done(self) -> int:
        return self._state.count(DONE)

    @property
    def failed(self) -> int:
        return self._state.count(FAILED)

    def stop(self) -> None:
        """Begin no more rows; those at work are finished."""
        self._stopping = True

    def __iter__(self) -> Iterator[dict]:
        if self._engine is None:
            raise RuntimeError("this batch has been run; call run() again to continue it")
        start, self._engine = self._engine, None
        try:
            if self.left:
                engine = start()
                if self.on_step and hasattr(engine, "on_step"):
                    engine.on_step = self.on_step
                try:
                    yield from self._results(engine)
                finally:
                    engine.close()
            self._finish()
        finally:
            self.close()

    def close(self) -> None:
        """Release the output folder; a batch that was iterated is closed already."""
        self.output.end()

    def _results(self, engine) -> Iterator[dict]:
        for made in engine.results(self._take):
            if made.full:  # the row's files go with the staging folder
                raise Stopped(f"no space is left for {self.output}: free some, and give the same command again")
            if made.error is not None and made.task.attempt <= self._options["retry"]:
                self._again.append(replace(made.task, attempt=made.task.attempt + 1))
            else:
                yield self._committed(made)
            if made.folder:
                shutil.rmtree(made.folder, ignore_errors=True)

    def _committed(self, made: Made) -> dict:
        try:
            return self._commit(made)
        except OSError as error:
            raise _stopped(error) from error

    def _take(self, most: int = 1) -> list[Task]:
        """The next rows to make, at most so many, of one model."""
        tasks: list[Task] = []
        while not self._stopping and len(tasks) < most:
            task = self._again.popleft() if self._again else next(self._source, None)
            if task is None:
                break
            if tasks and task.models != tasks[0].models:
                self._again.appendleft(task)
                break
            tasks.append(task)
        return tasks

    def _tasks(self) -> Iterator[Task]:
        for row, number in self.rows:
            if self._taken >= self.left:
                return
            if number >= self.total:
                raise Stopped(f"{self.rows.table.name} has grown since it was checked; give the same command again")
            if self._state[number] == DONE:
                continue
            try:
                task = self.rows.task(number, row)
            except BadRow as error:
                raise Stopped(f"{self.rows.where(row)}: {error}: the table has changed since it was checked") from error
            self._taken += 1
            yield task

    def _commit(self, made: Made) -> dict:
        """Give a row's files their names and make its line durable; the row is done then."""
        number, made_files = made.task.number, made.files if made.error is None else []
        self.output.keep(made_files)
        files = [{key: file[key] for key in ("name", "bytes", "sha256")} for file in made_files]
        before = self.manifest.read(self._offsets[number]) if self._offsets[number] >= 0 else {"files": []}
        record = self._record(made, files)
        self._offsets[number] = self.manifest.append(record)
        self._state[number] = DONE if made.error is None else FAILED
        self.output.remove([*{file["name"] for file in before["files"]} - {file["name"] for file in files}])
        return record

    def _record(self, made: Made, files: list[dict]) -> dict:
        return {
            "key": made.task.key,
            "row": made.task.number + 1,
            "inputs": made.task.hash,
            "workflow": self._workflow,
            "seed": seed_of(with_inputs(self.job.graph, made.task.inputs)),
            "files": files,
            "seconds": made.seconds,
            "device": made.device,
            "versions": made.versions,
            "error": made.error,
            "attempts": made.task.attempt,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _look_back(self, keys: Keys) -> None:
        """What the manifest says of earlier calls. BadCall where rows were made of something else."""
        found, gone = bytearray(self.total), {}
        names: dict[int, str] = {}
        for offset, record in self.manifest.lines():
            row = keys.find(record["key"])
            if row is None:
                gone[record["key"]] = offset
                continue
            number, inputs = row
            self._offsets[number], self._state[number] = offset, FAILED if record["error"] else DONE
            found[number] = self._differs(inputs, record)
            if found[number]:
                names.setdefault(found[number], record["key"])
        self._gone = list(gone.values())
        for number, kind in enumerate(found):
            if kind == LOST or (kind and self._options["changed"] == "again"):
                self._state[number] = MISSING
        self._say_changes(found, names)

    def _differs(self, inputs: str, record: dict) -> int:
        """What a row that is done was made of, or has lost, against what it would be now."""
        if record["error"]:
            return SAME
        if record["workflow"] != self._workflow:
            return OTHER_WORKFLOW
        if record["inputs"][:DIGITS] != inputs:
            return OTHER_INPUTS
        return SAME if all(map(self.output.has, record["files"])) else LOST

    def _say_changes(self, found: bytearray, names: Mapping[int, str]) -> None:
        reasons = {OTHER_WORKFLOW: "were made with another workflow or other settings", OTHER_INPUTS: "have changed"}
        parts = [
            f"{found.count(kind):,} rows {why} (such as {names[kind]!r})"
            for kind, why in reasons.items()
            if kind in found
        ]
        if parts and self._options["changed"] == "stop":
            raise BadCall(
                f"{self.output}: {' and '.join(parts)}. --changed again makes them again, --changed keep leaves "
                "them as they are, and another --output begins a new batch"
            )
        if parts:
            self.notes.append(f"{' and '.join(parts)}: they {WHAT_THEN[self._options['changed']]}")
        if lost := found.count(LOST):
            self.notes.append(f"the files of {lost:,} rows (such as {names[LOST]!r}) are gone or changed: made again")
        if self._gone:
            self.notes.append(f"{len(self._gone):,} rows of the manifest are no longer in the table; their files stay")

    def _finish(self) -> None:
        """The manifest in the table's order, and as parquet where pyarrow is there."""
        try:
            self.manifest.tidy([*self._offsets, *self._gone])
            self.manifest.write_parquet()
        except OSError as error:
            raise _stopped(error) from error


def _stopped(error: OSError) -> Stopped:
    return Stopped(f"the results cannot be written: {error}; mend that, and give the same command again")


def _plain(node: Mapping) -> list:
    return [node["class_type"], node["inputs"]]


def seed_of(graph: Mapping[str, dict]) -> int | None:
    """The first seed in a workflow."""
    for node in graph.values():
        for name in SEEDS:
            value = node["inputs"].get(name)
            if isinstance(value, int):
                return value
    return None


def run(
    workflow: str | Path | Mapping[str, dict],
    table: str | Path | Sequence[Mapping[str, Any]],
    *,
    output: str | Path = "output",
    settings: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    key: str | None = None,
    models: str | Path | None = None,
    input: str | Path | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    limit: int | None = None,
    retry: int = 0,
    changed: str = "stop",
    metadata: bool = True,
    batch: int | None = None,
) -> Batch:
    """Check a table, and return the Batch of its rows that are not done; iterate it to make them.

    ``workflow``: an API-format file or graph. ``table``: a csv, tsv, jsonl or parquet file, or a sequence of mappings.
    ``table``, ``output`` and ``models`` may be URLs of an object store, such as s3://bucket/folder.
    ``settings``: NODE.INPUT=VALUE texts. ``columns``: what a column sets, NODE.INPUT, or "" for nothing. ``key``: the
    column that names a row's files (else key or id, else the row's number). ``limit``: rows of this call. ``retry``:
    how often a failed row is tried again. ``batch``: rows at once, as far as memory allows (None: TOGETHER; comfyui 1).
    ``engine``: local; ray with ``workers`` on a cluster at ``address`` (None: one on this machine); comfyui on the
    servers at ``address`` (HOST:PORT, …). ``changed``: stop, again or keep rows that were made of something else.

    Raises BadCall (a ValueError) before anything loads; iterating Stopped where the disk is full or no server answers.
    """
    _check_options(engine, limit, retry, changed, workers, batch := rows_at_once(batch, engine))
    graph = read_workflow(Path(workflow)) if isinstance(workflow, (str, Path)) else _copied(workflow)
    results, opened = output_at(local_or_url(output)), open_table(table)
    folders = (results.staging, results.path, _models(models), _path(input))
    job = Job(graph, frozenset(), *folders, metadata, batch, results.url)
    servers = (address or "") if engine == "comfyui" else None
    read = partial(_read, job, opened, settings, columns or {}, key, servers)
    start = partial(ENGINES[engine], workers=workers, address=address)
    return _begin(job, results, read, start, {"limit": limit, "retry": retry, "changed": changed})


def _begin(job: Job, results: Folder | Bucket, read: Callable, engine: Callable, options: dict) -> Batch:
    """The Batch, which holds the output; nothing was written there before the table was read."""
    try:
        rows, keys = read()
        job = replace(job, varied=frozenset(rows.columns.varied()))
        results.begin()
    except BaseException:
        results.discard()
        raise
    try:
        return Batch(rows, keys, job, partial(engine, job), results, options)
    except BaseException:
        results.end()
        raise


def _read(job: Job, table: Table, settings, columns, key, address: str | None) -> tuple[Rows, Keys]:
    """Every row, checked; ``address``: the servers whose declarations count, None for the embedded host's."""
    checks = EmbeddedChecks(job) if address is None else ServerChecks(job.graph, address, job.input)
    apply_settings(job.graph, list(settings), checks.declared)
    rows = Rows(table, Columns(job.graph, checks.declared, columns, key, table.texts), checks.files, checks.loaders)
    keys = read_all(rows, checks)
    if unknown := [name for name in [*columns, *([key] if key else [])] if name not in rows.columns.targets]:
        raise BadTable(f"{table.name} has no column {unknown[0]!r}; its columns are {', '.join(rows.columns.targets)}")
    return rows, keys


def rows_at_once(wanted: int | None, engine: str) -> int:
    if wanted is not None:
        return wanted
    return 1 if engine == "comfyui" else TOGETHER


def _check_options(engine: str, limit: int | None, retry: int, changed: str, workers: int | None, batch: int) -> None:
    for name, value, choices in (("engine", engine, ENGINES), ("changed", changed, CHANGED)):
        if value not in choices:
            raise BadCall(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    for name, number in (("limit", limit), ("retry", retry)):
        if number is not None and number < 0:
            raise BadCall(f"{name} is {number}; give 0 or more")
    for name, number in (("workers", workers), ("batch", batch)):
        if number is not None and number < 1:
            raise BadCall(f"{name} is {number}; give 1 or more")
    if batch > 1 and engine == "comfyui":
        raise BadCall("--batch is for the engines local and ray; a ComfyUI server runs one row at a time")


def _copied(graph: Mapping[str, dict]) -> dict[str, dict]:
    return {key: {**node, "inputs": dict(node.get("inputs", {}))} for key, node in graph.items()}


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value).absolute()


def _models(value: str | Path | None) -> Path | Url | None:
    found = None if value is None else local_or_url(value)
    return found.absolute() if isinstance(found, Path) else found
