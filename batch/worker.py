"""One process that holds the models and makes rows on the embedded host."""

from __future__ import annotations

import platform
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..cli.calls import BadCall, sha256_of
from ..host.embedded.folders import Folders
from .columns import Changes
from .manifest import sync_file
from .models import Copies
from .urls import Url

UNSAVED = 2
"""Rows that are computed and not saved yet, of which the images are held."""


class Stopped(RuntimeError):
    """A batch that cannot continue: the disk is full, no server answers. What is done stays done."""


@dataclass(frozen=True)
class Task:
    """A row to make: its number in the table from 0, its key, and the inputs of the nodes that the table sets.

    ``models``: equal where rows need the same models.
    """

    number: int
    key: str
    inputs: Changes
    hash: str
    models: str = ""
    attempt: int = 1


@dataclass
class Made:
    """What became of a task: files below ``folder`` with bytes and sha256, or an error; ``full``: no space is left."""

    task: Task
    files: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    full: bool = False
    folder: str = ""


Take = Callable[[int], list[Task]]
"""Gives up to so many tasks of one model; none where there are no more now."""


@dataclass(frozen=True)
class Job:
    """What all rows share. ``graph``: the workflow with its settings; ``varied``: the nodes that the table sets.

    Files are saved into ``staging`` first. ``models`` and ``input`` are folders or None for the usual ones.
    ``batch``: rows that are sampled together. ``url``: the object store to which files are put under their names;
    ``output`` is a folder of this machine then.
    """

    graph: dict[str, dict]
    varied: frozenset[str]
    staging: Path
    output: Path
    models: Path | Url | None = None
    input: Path | None = None
    metadata: bool = True
    batch: int = 1
    url: str | None = None


_staging: ContextVar[Path] = ContextVar("sana_staging")
"""Where the row at work saves its files; each thread has its own row."""


class StagedFolders(Folders):
    """Folders whose saved files go into a staging folder; ``[output]`` in a file's name is the true output folder."""

    copies: Copies | None = None

    def fetch(self, graph: Mapping[str, dict], inputs: Mapping[str, Mapping]) -> None:
        """Copy the models that a graph with these inputs names to this machine, where they are at a URL."""
        if self.copies:
            self.copies.fetch(with_inputs(graph, inputs))

    def save_target(self, prefix, width, height, folder=None):
        staged = folder is None or Path(folder) == Path(self.output)
        return super().save_target(prefix, width, height, _staging.get() if staged else folder)


def embedded_folders(job: Job, name: str) -> StagedFolders:
    """The embedded host's folders for a job, put in force; ``name`` is this worker's below the staging folder."""
    from .. import host

    chosen: Any = host.use("embedded")
    folders = StagedFolders()
    if isinstance(job.models, Url):
        folders.copies = Copies(job.models)
        folders.models = [folders.copies.folder]
    elif job.models:
        folders.models = [job.models]
    folders.input = job.input or folders.input
    folders.output = job.output
    folders.temp = job.staging / name / "temp"
    chosen.folders = folders
    return folders


class Worker:
    """Makes rows, several at once; models and encoded prompts stay from call to call.

    Rows are saved by a thread while the next ones are computed; that holds the images of a few rows at most.
    """

    def __init__(self, job: Job, name: str):
        from ..host.embedded.kept import Kept
        from ..host.embedded.rows import Rows

        self.job, self.base = job, job.staging / name
        self.folders = embedded_folders(job, name)
        self.rows = Rows(self.folders, job.metadata, Kept(job.varied))
        self.device, self.versions = _device(), _versions()
        self.writer = ThreadPoolExecutor(1, "sana-saving")
        self._unsaved, self._computing = threading.BoundedSemaphore(UNSAVED), threading.Lock()
        self._plan: Any = None

    def make(self, tasks: Sequence[Task]) -> list[Made]:
        """Make rows of one model. What fails is in the results; their folders are the caller's to remove.

        A second thread may call it meanwhile: one computes while the other one waits for what is saved.
        """
        with self._computing:
            begun = list(self.begin(tasks))
        return [future.result() for future in begun]

    def begin(self, tasks: Sequence[Task]) -> Iterator[Future[Made]]:
        """Compute rows, and give each to the thread that saves it."""
        from ..host.embedded.graph import BadWorkflow

        start, runs = time.perf_counter(), []
        for task in tasks:
            try:
                runs.append((task, self._run(task)))
            except (BadWorkflow, OSError) as error:
                yield _ended(self._failed(task, error))
        for (task, _), run in zip(runs, self.rows.perform([run for _, run in runs]) if runs else ()):
            seconds = (time.perf_counter() - start) / len(runs)
            if run.error is not None:
                yield _ended(self._failed(task, run.error, seconds))
                continue
            self._unsaved.acquire()
            yield self.writer.submit(self._finish, task, run, seconds)

    def _run(self, task: Task) -> Any:
        from ..host.embedded import graph as executor
        from ..host.embedded.rows import Run

        folder = self._folder(task)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folders.fetch(self.job.graph, task.inputs)
        plan = executor.varied(self._checked(task.inputs), task.inputs, self.folders)
        return Run(plan, lambda: _staging.set(folder) and None)

    def _folder(self, task: Task) -> Path:
        return self.base / f"row-{task.number}"

    def _finish(self, task: Task, run: Any, seconds: float) -> Made:
        begin = time.perf_counter()
        try:
            saved = self.rows.finish(run).saved
            files = dict.fromkeys(Path(path) for key in run.plan.order for path in saved.get(key, ()))
            made = self._made(task, seconds + time.perf_counter() - begin)
            made.files = delivered(self.job, task, files)
            return made
        except Exception as error:
            return self._failed(task, error, seconds + time.perf_counter() - begin)
        finally:
            self._unsaved.release()

    def _made(self, task: Task, seconds: float) -> Made:
        folder = str(self._folder(task))
        return Made(task, seconds=round(seconds, 4), device=self.device, versions=self.versions, folder=folder)

    def _failed(self, task: Task, error: Exception, seconds: float = 0.0) -> Made:
        made = self._made(task, seconds)
        made.error, made.full = str(error) or type(error).__name__, is_full(error, self.job.output)
        return made

    def _checked(self, inputs: Mapping[str, Mapping]):
        from .. import NODE_CLASS_MAPPINGS
        from ..host.embedded import graph as executor

        if self._plan is None:
            self._plan = executor.check(with_inputs(self.job.graph, inputs), NODE_CLASS_MAPPINGS, self.folders)
        return self._plan

    def close(self) -> None:
        """Wait for the row that is being saved; the others are dropped."""
        self.writer.shutdown(cancel_futures=True)


def _ended(made: Made) -> Future[Made]:
    future: Future[Made] = Future()
    future.set_result(made)
    return future


def with_inputs(graph: Mapping[str, dict], inputs: Mapping[str, Mapping]) -> dict[str, dict]:
    """A graph in which some nodes have other inputs."""
    return {**graph, **{key: {**graph[key], "inputs": dict(values)} for key, values in inputs.items()}}


def delivered(job: Job, task: Task, paths: Iterable[Path]) -> list[dict]:
    """A row's files, whole on the disk or in the object store: path, bytes, sha256, and the name of each."""
    found = []
    for count, path in enumerate(paths, 1):
        name = f"{task.key}{f'~{count}' if count > 1 else ''}{''.join(path.suffixes[-1:])}"
        found.append({"path": str(path), "name": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)})
        if job.url:
            Url(job.url).child(name).put(path)
        else:
            sync_file(path)
    return found


def is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether a row failed because no space is left: the next one would too."""
    import errno

    from ..media.prefixes import LEAST_SPACE

    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            return True
        error = error.__cause__ or getattr(error, "error", None)
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    return shutil.disk_usage(there).free < LEAST_SPACE


def _device() -> str:
    import torch

    from ..host.embedded.devices import default_device

    device = default_device()
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _versions() -> dict[str, str]:
    """What is installed, found without importing it: diffusers alone takes seconds."""
    found = {"sana-nodes": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Local:
    """The engine of one process."""

    def __init__(self, job: Job, workers: int | None = None, address: str | None = None):
        if workers not in (None, 1) or address is not None:
            raise BadCall(
                "--workers and --address are for the engines ray and comfyui; the engine local is one process"
            )
        self.batch, self.worker = job.batch, Worker(job, "0")

    def results(self, take: Take) -> Iterator[Made]:
        """Make what ``take`` gives until it gives nothing and all is made; yields Made.

        A row that fails is told before another one begins: ``take`` may give it again. Where the person interrupts,
        rows that are computed are still told.
        """
        waiting: deque[Future[Made]] = deque()
        try:
            while (tasks := take(self.batch)) or waiting:
                for future in self.worker.begin(tasks):
                    waiting.append(future)
                    failed = future.done() and future.result().error is not None
                    while waiting and (failed or waiting[0].done()):
                        yield waiting.popleft().result()
                if not tasks:
                    yield waiting.popleft().result()
        except KeyboardInterrupt:
            while waiting:
                yield waiting.popleft().result()
            raise

    def close(self) -> None:
        """End the thread that saves."""
        self.worker.close()
