"""One process that holds the models and makes rows on the embedded host."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..cli.calls import BadCall, sha256_of
from ..host.embedded.folders import Folders
from .columns import Changes
from .manifest import sync_file


class Stopped(RuntimeError):
    """A batch that cannot continue: the disk is full, no server answers. What is done stays done."""


@dataclass(frozen=True)
class Task:
    """A row to make: its number in the table from 0, its key, and the inputs of the nodes that the table sets."""

    number: int
    key: str
    inputs: Changes
    hash: str
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


@dataclass(frozen=True)
class Job:
    """What all rows share. ``graph``: the workflow with its settings; ``varied``: the nodes that the table sets.

    Files are saved into ``staging`` first. ``models`` and ``input`` are folders or None for the usual ones.
    """

    graph: dict[str, dict]
    varied: frozenset[str]
    staging: Path
    output: Path
    models: Path | None = None
    input: Path | None = None
    metadata: bool = True


class StagedFolders(Folders):
    """Folders whose saved files go into a staging folder; ``[output]`` in a file's name is the true output folder."""

    staging: Path

    def save_target(self, prefix, width, height, folder=None):
        staged = folder is None or Path(folder) == Path(self.output)
        return super().save_target(prefix, width, height, self.staging if staged else folder)


def embedded_folders(job: Job, name: str) -> StagedFolders:
    """The embedded host's folders for a job, put in force; ``name`` is this worker's below the staging folder."""
    from .. import host

    chosen: Any = host.use("embedded")
    folders = StagedFolders()
    folders.models = [job.models] if job.models else folders.models
    folders.input = job.input or folders.input
    folders.output, folders.staging = job.output, job.staging / name
    folders.temp = folders.staging / "temp"
    chosen.folders = folders
    return folders


class Worker:
    """Makes rows one after another; models and encoded prompts stay from row to row."""

    def __init__(self, job: Job, name: str):
        from ..host.embedded.kept import Kept

        self.job, self.folders = job, embedded_folders(job, name)
        self.base = self.folders.staging
        self.kept = Kept(job.varied)
        self.device, self.versions = _device(), _versions()
        self._plan: Any = None

    def make(self, task: Task) -> Made:
        """Make a row. What fails is in the result; its folder is the caller's to remove."""
        begin, folder = time.perf_counter(), self.base / f"row-{task.number}"
        shutil.rmtree(folder, ignore_errors=True)
        made = Made(task, device=self.device, versions=self.versions, folder=str(folder))
        try:
            folder.mkdir(parents=True)
            self.folders.staging = folder
            made.files = [described(path) for path in self._run(task)]
        except Exception as error:
            made.error, made.full = str(error) or type(error).__name__, is_full(error, self.job.output)
        made.seconds = round(time.perf_counter() - begin, 4)
        return made

    def _run(self, task: Task) -> list[Path]:
        from ..host.embedded import graph as executor

        plan = executor.varied(self._checked(task.inputs), task.inputs, self.folders)
        outcome = executor.perform(plan, self.folders, None, self.job.metadata, self.kept)
        files = [Path(path) for key in plan.order for path in outcome.saved.get(key, ())]
        return list(dict.fromkeys(files))

    def _checked(self, inputs: Mapping[str, Mapping]):
        from .. import NODE_CLASS_MAPPINGS
        from ..host.embedded import graph as executor

        if self._plan is None:
            self._plan = executor.check(with_inputs(self.job.graph, inputs), NODE_CLASS_MAPPINGS, self.folders)
        return self._plan


def with_inputs(graph: Mapping[str, dict], inputs: Mapping[str, Mapping]) -> dict[str, dict]:
    """A graph in which some nodes have other inputs."""
    return {**graph, **{key: {**graph[key], "inputs": dict(values)} for key, values in inputs.items()}}


def described(path: Path) -> dict:
    """A file that is whole on the disk, with its bytes and sha256."""
    found = {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
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
    return shutil.disk_usage(folder).free < LEAST_SPACE


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
        self.worker = Worker(job, "0")

    def results(self, take):
        """Make the tasks that ``take()`` gives until it gives None; yields Made."""
        while (task := take()) is not None:
            yield self.worker.make(task)

    def close(self) -> None:
        """Nothing is left open."""
