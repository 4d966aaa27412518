"""The engine ray: an actor for each worker holds the models; lost actors are replaced and their rows made again."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cli.calls import BadCall
from .estimate import Needs, needs_of
from .worker import Job, Made, Stopped, Take, Task, Worker

MOST_LOSSES = 3
"""Actors that a row may lose before it counts as failed: it may be the row that kills them."""

QUEUED = 3
"""Calls that an actor has: one that saves, one that computes, and one that waits, so that it never waits for rows."""

RESERVED = 0.05
"""Part of each processor core that no actor takes, or Ray's own tasks on a small cluster would never begin."""

PATIENCE = 600.0
"""Seconds in which a worker must start where none works: a cluster may have to start a machine first."""

CHECK = 5.0
"""Seconds without a result after which it is asked whether the cluster has machines."""

MOST_STARTS = 3
"""Workers that may fail to start one after another before the batch ends."""


class ClusterWorker(Worker):
    """A Worker on a cluster. Where it does not see the file ``token``, which holds ``word``, it is on a machine that
    does not share the output folder: its files are returned as bytes.
    """

    def __init__(self, job: Job, name: str, token: str, word: str):
        path = Path(token)
        self.shared = job.url is not None or (path.is_file() and path.read_text() == word)
        super().__init__(job, name)

    def ready(self) -> bool:
        """That it has started."""
        return True

    def make(self, tasks: Sequence[Task]) -> list[Made]:
        found = super().make(tasks)
        if not self.shared:
            for made in found:
                for file in made.files:
                    file["data"] = Path(file["path"]).read_bytes()
                shutil.rmtree(made.folder, ignore_errors=True)
        return found


@dataclass
class Member:
    """A worker: its actor, what tells that it started (None: it has), and its rows by the reference of their results,
    those at work first.
    """

    name: str
    actor: Any
    starting: Any
    rows: dict[Any, list[Task]] = field(default_factory=dict)


class RayEngine:
    """Rows on a Ray cluster. ``address``: a running one (None: started here and ended again); ``workers``: actors.

    Files are named by this process alone.
    """

    worker: type = ClusterWorker

    def __init__(self, job: Job, workers: int | None = None, address: str | None = None):
        self.ray = import_ray()
        self.job, self.started, self.failures = job, 0, 0
        self.losses: dict[int, int] = {}
        self.waiting: deque[list[Task]] = deque()
        self.token, self.word = job.staging / "token", uuid.uuid4().hex
        self.owned = not self.ray.is_initialized()
        if self.owned:
            self._connect(workers, address)
        try:
            self._start(workers)
        except BaseException:
            self.close()
            raise

    def _connect(self, workers: int | None, address: str | None) -> None:
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(_import_paths())}}
        common: dict = {"runtime_env": environment, "log_to_driver": False, "logging_level": "ERROR"}
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by itself: on a machine in use its workers hardly begin
        local: dict = {} if address else {"num_cpus": max(workers or 1, os.cpu_count() or 1)}
        try:
            self.ray.init(address=address, include_dashboard=None if address else False, **common, **local)
        except Exception as error:  # a bare one where its processes do not start in time
            raise BadCall(f"no Ray cluster at {address or 'this machine'}: {error}") from error

    def _start(self, workers: int | None) -> None:
        self.members: list[Member] = []
        self.job.staging.mkdir(parents=True, exist_ok=True)
        self.token.write_text(self.word)
        resources = self.ray.cluster_resources()
        self.options, count = actor_options(resources, workers, needs_of(self.job))
        self.members += [self._member() for _ in range(count)]

    def _member(self) -> Member:
        name, self.started = str(self.started), self.started + 1
        kind = self.ray.remote(self.worker).options(max_concurrency=QUEUED, **self.options)
        actor = kind.remote(self.job, f"ray-{name}", str(self.token), self.word)
        return Member(name, actor, actor.ready.remote())

    def results(self, take: Take) -> Iterator[Made]:
        """Make what ``take`` gives until it gives nothing and all is made; yields Made as they end."""
        while True:
            self._hand_out(take)
            working = {ref: member for member in self.members for ref in member.rows}
            if not working and not self.waiting:
                return
            starting = {member.starting: member for member in self.members if member.starting is not None}
            for ref in self._ended([*working, *starting], bool(working)):
                if ref in starting:
                    self._has_started(starting[ref])
                elif ref in working[ref].rows:  # not where its actor was lost just now
                    made = list(self._results_of(working[ref], ref))
                    self._hand_out(take)  # before these are written down
                    yield from made

    def _ended(self, refs: list, working: bool) -> list:
        """The first that ends. Stopped where no machine is left, or no worker starts and none is ``working``."""
        begin = time.monotonic()
        while working or time.monotonic() - begin < PATIENCE:
            ended, _ = self.ray.wait(refs, num_returns=1, timeout=CHECK)
            if ended:
                return ended
            if not any(node["Alive"] for node in self.ray.nodes()):
                raise Stopped("the Ray cluster has lost its last machine; give the same command again")
        raise Stopped(
            f"no worker has started in {PATIENCE:.0f} s: {self.ray.available_resources()} of the cluster are free, "
            f"and each takes {self.options}; see to that, and give the same command again"
        )

    def _hand_out(self, take: Take) -> None:
        """Rows to members that have started; at least one group waits where there are rows left."""
        for depth in range(1, QUEUED + 1):
            for member in self.members:
                if member.starting is None and len(member.rows) < depth and self._is_filled(take):
                    tasks = self.waiting.popleft()
                    member.rows[member.actor.make.remote(tasks)] = tasks
        self._is_filled(take)

    def _is_filled(self, take: Take) -> bool:
        if not self.waiting and (tasks := take(self.job.batch)):
            self.waiting.append(tasks)
        return bool(self.waiting)

    def _has_started(self, member: Member) -> None:
        try:
            self.ray.get(member.starting)
        except self.ray.exceptions.RayError as error:
            self.failures += 1
            if self.failures >= MOST_STARTS:
                raise Stopped(f"{MOST_STARTS} workers could not start: {_reason(error)}") from error
            self._replace(member)
        else:
            member.starting, self.failures = None, 0

    def _results_of(self, member: Member, ref: Any) -> Iterator[Made]:
        try:
            made = self.ray.get(ref)
        except self.ray.exceptions.RayActorError as error:
            yield from self._lost(member, error)
        except self.ray.exceptions.RayError as error:
            for task in member.rows.pop(ref):
                yield Made(task, error=f"the worker failed: {_reason(error)}")
        else:
            del member.rows[ref]
            yield from made

    def _lost(self, member: Member, error: Exception) -> Iterator[Made]:
        """A new actor for one that was lost; its rows go to any, one by one those that may have ended it.

        A row that lost too many actors has failed.
        """
        groups = list(member.rows.values())
        self._replace(member)
        self.waiting.extendleft(reversed(groups[1:]))
        for task in reversed(groups[0]):
            self.losses[task.number] = self.losses.get(task.number, 0) + 1
            if len(groups[0]) == 1 and self.losses[task.number] >= MOST_LOSSES:
                yield Made(task, error=f"{MOST_LOSSES} workers ended at this row: {_reason(error)}")
            else:
                self.waiting.appendleft([task])

    def _replace(self, member: Member) -> None:
        shutil.rmtree(self.job.staging / f"ray-{member.name}", ignore_errors=True)
        fresh = self._member()
        member.name, member.actor, member.starting, member.rows = fresh.name, fresh.actor, fresh.starting, {}

    def close(self) -> None:
        """End the actors, and the cluster where it was started here."""
        for member in self.members:
            self.ray.kill(member.actor)
        if self.owned:
            self.ray.shutdown()


def _reason(error: Exception) -> str:
    """The last line of what Ray says, which for an error of ours is that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def import_ray() -> Any:
    """The module ray; BadCall names the extra where it is missing."""
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    try:
        import ray
    except ImportError as error:
        raise BadCall("the engine ray needs the package ray: pip install sana-nodes[ray]") from error
    return ray


def actor_options(resources: dict, workers: int | None, needs: Needs) -> tuple[dict, int]:
    """What an actor takes of a cluster, and how many there are.

    A card where there are some, shared where more workers are asked for and a card has the memory; else an equal part
    of the cores. Its main memory is the estimate. BadCall where the cluster has too little.
    """
    cores, gpus, memory = (resources.get(name, 0.0) for name in ("CPU", "GPU", "memory"))
    main = needs.on_card if gpus else needs.without_card
    possible = max(1, int(memory // main)) if memory and main else None
    count = workers or max(1, min(int(gpus or cores or 1), possible or int(gpus or cores or 1)))
    if possible is not None and count * main > memory:
        raise BadCall(
            f"{count} workers need {main / 1e9:.1f} GB of main memory each, and the cluster has {memory / 1e9:.1f} GB: "
            f"give --workers {possible}" + (" or a larger cluster" if memory < main else "")
        )
    options: dict = {"memory": main} if main and memory else {}
    if not gpus:
        return {**options, "num_cpus": round(cores * (1 - RESERVED) / count, 4)}, count
    share = -(-count // int(gpus))
    if needs.card and needs.card < share * needs.device:
        most = max(1, int(needs.card // needs.device)) * int(gpus)
        raise BadCall(
            f"{count} workers on {int(gpus)} cards need {needs.device / 1e9:.1f} GB each, and a card has "
            f"{needs.card / 1e9:.1f} GB: give --workers {most}"
        )
    return {**options, "num_gpus": 1.0 if share == 1 else int(10000 / share) / 10000, "num_cpus": 0}, count


def _import_paths() -> list[str]:
    """Where this process found the pack, so that actors on this machine find it too."""
    package = Path(__file__).parent.parent
    found = [str(package.parent)] if package.name == "sana_nodes" else []
    return [*found, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
