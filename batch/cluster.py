"""The engine ray: an actor for each worker holds the models; lost actors are replaced and their rows made again."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli.calls import BadCall
from .worker import Job, Made, Take, Task, Worker

MOST_LOSSES = 3
"""Actors that a row may lose before it counts as failed: it may be the row that kills them."""

QUEUED = 2
"""Calls that an actor has: one that computes, and one that saves or waits, so that it never waits for the driver."""

RESERVED = 0.05
"""Part of each processor core that no actor takes, or Ray's own tasks on a small cluster would never begin."""


@dataclass
class Member:
    """A worker: its actor, and its rows by the reference of their results, those at work first."""

    name: str
    actor: Any
    rows: dict[Any, list[Task]]


class RayEngine:
    """Rows on a Ray cluster. ``address``: a running one (None: started here and ended again); ``workers``: actors.

    The output folder must be the same on every machine; files are written there and named by this process alone.
    """

    def __init__(self, job: Job, workers: int | None = None, address: str | None = None):
        self.ray = import_ray()
        self.job, self.started = job, 0
        self.losses: dict[int, int] = {}
        self.suspects: deque[Task] = deque()
        self.owned = not self.ray.is_initialized()
        if self.owned:
            self._connect(workers, address)
        self.options = actor_options(self.ray.cluster_resources(), workers)
        count = workers or _fitting(self.ray.cluster_resources(), self.options)
        self.members = [self._member() for _ in range(count)]

    def _connect(self, workers: int | None, address: str | None) -> None:
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(_import_paths())}}
        common: dict = {"runtime_env": environment, "log_to_driver": False, "logging_level": "ERROR"}
        local: dict = {} if address else {"num_cpus": max(workers or 1, os.cpu_count() or 1)}
        try:
            self.ray.init(address=address, include_dashboard=None if address else False, **common, **local)
        except Exception as error:  # a bare one where its processes do not start in time
            raise BadCall(f"no Ray cluster at {address or 'this machine'}: {error}") from error

    def _member(self) -> Member:
        name, self.started = str(self.started), self.started + 1
        actor = self.ray.remote(Worker).options(**self.options).remote(self.job, f"ray-{name}")
        return Member(name, actor, {})

    def results(self, take: Take) -> Iterator[Made]:
        """Make what ``take`` gives until it gives nothing and all is made; yields Made as they end."""
        while True:
            self._hand_out(take)
            waiting = {ref: member for member in self.members for ref in member.rows}
            if not waiting:
                return
            ended, _ = self.ray.wait(list(waiting), num_returns=1)
            for ref in ended:
                member = waiting[ref]
                if ref in member.rows:  # not where its actor was lost just now
                    yield from self._ended(member, ref)

    def _hand_out(self, take: Take) -> None:
        for depth in range(1, QUEUED + 1):
            for member in self.members:
                if len(member.rows) < depth:
                    tasks = [self.suspects.popleft()] if self.suspects else take(self.job.batch)
                    if not tasks:
                        return
                    self._give(member, tasks)

    def _give(self, member: Member, tasks: list[Task]) -> None:
        member.rows[member.actor.make.remote(tasks)] = tasks

    def _ended(self, member: Member, ref: Any) -> Iterator[Made]:
        try:
            made = self.ray.get(ref)
        except self.ray.exceptions.RayActorError as error:
            yield from self._replace(member, error)
        except self.ray.exceptions.RayError as error:
            for task in member.rows.pop(ref):
                yield Made(task, error=f"the worker failed: {str(error).splitlines()[-1]}")
        else:
            del member.rows[ref]
            yield from made

    def _replace(self, member: Member, error: Exception) -> Iterator[Made]:
        """A new actor for one that was lost; its rows are made again, one by one those that may have ended it.

        A row that lost too many actors has failed.
        """
        groups = list(member.rows.values())
        shutil.rmtree(self.job.staging / f"ray-{member.name}", ignore_errors=True)
        fresh = self._member()
        member.name, member.actor, member.rows = fresh.name, fresh.actor, {}
        for task in groups[0] if groups else ():
            self.losses[task.number] = self.losses.get(task.number, 0) + 1
            if len(groups[0]) == 1 and self.losses[task.number] >= MOST_LOSSES:
                yield Made(task, error=f"{MOST_LOSSES} workers ended at this row: {str(error).splitlines()[0]}")
            else:
                self.suspects.append(task)
        for tasks in groups[1:]:
            self._give(member, tasks)

    def close(self) -> None:
        """End the actors, and the cluster where it was started here."""
        for member in self.members:
            self.ray.kill(member.actor)
        if self.owned:
            self.ray.shutdown()


def import_ray() -> Any:
    """The module ray; BadCall names the extra where it is missing."""
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    try:
        import ray
    except ImportError as error:
        raise BadCall("the engine ray needs the package ray: pip install sana-nodes[ray]") from error
    return ray


def actor_options(resources: dict, workers: int | None) -> dict:
    """What an actor takes of a cluster: a GPU where there are some, else an equal part of the cores."""
    cores, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    if gpus:
        return {"num_gpus": 1 if not workers or workers <= gpus else gpus / workers, "num_cpus": 0}
    return {"num_cpus": round(cores * (1 - RESERVED) / (workers or cores), 4)}


def _fitting(resources: dict, options: dict) -> int:
    if options.get("num_gpus"):
        return max(1, int(resources["GPU"] / options["num_gpus"]))
    return max(1, int(resources.get("CPU", 1)))


def _import_paths() -> list[str]:
    """Where this process found the pack, so that actors on this machine find it too."""
    package = Path(__file__).parent.parent
    found = [str(package.parent)] if package.name == "sana_nodes" else []
    return [*found, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
