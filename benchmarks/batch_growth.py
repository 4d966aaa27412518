"""How a batch grows on a Ray cluster, on paper: workers whose stages sleep, with the engine's own driver and manifest.

    python benchmarks/batch_growth.py [--workers 1 2 4 8 16] [--rows 40] [--stages 0.02 0.10 0.12 0.05]
                                      [--times FILE] [--bend] [--pools] [--json FILE]

``--stages``: seconds of encoding, sampling, decoding and saving one row; the last overlaps the others. The default is
SANA-Sprint at 1024 x 1024 on an H100, as published. ``--times``: a JSON file of benchmarks/run.py, whose rows prompt,
sprint-0.6b-step (twice) and dc-ae-decode are taken instead. Efficiency is the time that the rows take without any
overhead, over the time that passed for each worker between its first row and its last one. Each worker writes a file
of 200 kB for a row. ``--bend`` makes the stages shorter, with the most workers, until efficiency falls below 0.95.
``--pools`` compares workers that do all stages with separate pools for encoding, sampling and decoding, of as many
workers in all. Ray's CPUs are numbers here: sleeping takes none.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sana_nodes.batch import driver
from sana_nodes.batch.cluster import RayEngine, import_ray
from sana_nodes.batch.worker import Job, Made, Task, delivered

STAGES = (0.02, 0.10, 0.12, 0.05)
FILE = os.urandom(200_000)
FLOOR = 0.95
GRAPH = {
    "1": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 8, "height": 8}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "white.png"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "Sana"}},
}


def sleeping(stages: Sequence[float]) -> type:
    """A worker whose stages sleep; the file that it writes is real."""

    class Sleeping:
        def __init__(self, job: Job, name: str, token: str, word: str):
            self.job, self.folder, self.computing, self.name = job, job.staging / name, threading.Lock(), name
            self.folder.mkdir(parents=True)

        def ready(self) -> bool:
            return True

        def make(self, tasks: Sequence[Task]) -> list[Made]:
            with self.computing:
                time.sleep(sum(stages[:3]) * len(tasks))
            time.sleep(stages[3])
            return [self._made(task) for task in tasks]

        def _made(self, task: Task) -> Made:
            path = self.folder / f"{task.number}.png"
            path.write_bytes(FILE)
            return Made(task, delivered(self.job, task, [path]), sum(stages), self.name)

    return Sleeping


def moments(count: int, rows: int, stages: Sequence[float]) -> dict[str, list[float]]:
    """When each worker's rows were done, by the driver; so many rows each."""
    from PIL import Image

    engine = type("Simulated", (RayEngine,), {"worker": sleeping(stages)})
    driver.ENGINES["simulated"] = engine  # type: ignore[assignment]
    table = [{"key": f"r{i}", "3.filename_prefix": f"r{i}"} for i in range(count * rows)]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (8, 8)).save(Path(folder) / "white.png")
        for line in driver.run(GRAPH, table, output=f"{folder}/out", input=folder, engine="simulated", workers=count):
            found.setdefault(line["device"], []).append(time.perf_counter())
    return found


def efficiency(count: int, rows: int, stages: Sequence[float]) -> dict:
    """Of the time between a worker's first row and its last one, the part that its stages take."""
    found = moments(count, rows, stages)
    made, row = sum(len(times) - 1 for times in found.values()), sum(stages[:3])
    busy = sum(times[-1] - times[0] for times in found.values())
    rate = round(count * made / busy, 2)
    return {"workers": count, "row_s": round(row, 4), "efficiency": round(row * made / busy, 4), "rows_per_s": rate}


def bend(count: int, rows: int, stages: Sequence[float]) -> dict:
    """Where the driver is the limit: rows per second of the last run at or above FLOOR, and of the first below."""
    above: dict = {}
    while True:
        found = efficiency(count, rows, stages)
        print(json.dumps(found), flush=True)
        if found["efficiency"] < FLOOR:
            return {"above": above, "below": found}
        above, stages, rows = found, [stage / 2 for stage in stages], rows * 2


def pooled(count: int, rows: int, stages: Sequence[float]) -> dict:
    """Rows a second of workers that do all, and of pools for each stage, of the sizes that suit the stages best."""
    ray = import_ray()

    @ray.remote(num_cpus=0)
    class Stage:
        def run(self, seconds: float, *_: Any) -> bytes:
            time.sleep(seconds)
            return b""

    sizes = shares(count, stages[:3])
    pools = [[Stage.remote() for _ in range(size)] for size in sizes]
    ray.get([stage.run.remote(0.0) for pool in pools for stage in pool])
    total = count * rows

    def chained() -> list:
        refs: list = [None] * total
        for pool, seconds in zip(pools, stages):
            refs = [pool[i % len(pool)].run.remote(seconds, ref) for i, ref in enumerate(refs)]
        return refs

    whole = [stage for pool in pools for stage in pool]
    apart = _rate(total, lambda: ray.get(chained()))
    alone = _rate(total, lambda: ray.get([whole[i % count].run.remote(sum(stages[:3])) for i in range(total)]))
    return {"workers": count, "pools": sizes, "rows_per_s_apart": apart, "rows_per_s_together": alone}


def shares(count: int, stages: Sequence[float]) -> list[int]:
    """Workers of each stage: the split of ``count`` whose slowest stage is the fastest."""
    splits = [(a, b, count - a - b) for a in range(1, count - 1) for b in range(1, count - a)]
    return list(max(splits, key=lambda split: min(size / max(stage, 1e-9) for size, stage in zip(split, stages))))


def _rate(total: int, call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return round(total / (time.perf_counter() - begin), 2)


def stages_of(file: Path) -> list[float]:
    """Stage times of a JSON file of benchmarks/run.py."""
    rows = {row["row"]: row["ours_s"] for row in json.loads(file.read_text())["rows"]}
    return [rows["prompt"], 2 * rows["sprint-0.6b-step"], rows["dc-ae-decode"], STAGES[3]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Growth of a batch on a Ray cluster, with sleeping stages.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rows", type=int, default=40, help="rows of each worker")
    parser.add_argument("--stages", type=float, nargs=4, default=STAGES)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--bend", action="store_true")
    parser.add_argument("--pools", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    stages = stages_of(options.times) if options.times else list(options.stages)
    ray, most = import_ray(), max(options.workers)
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the engine's own cluster
    ray.init(num_cpus=most, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    found: dict = {"stages": stages, "rows": options.rows, "growth": []}
    for count in options.workers:
        found["growth"].append(efficiency(count, options.rows, stages))
        print(json.dumps(found["growth"][-1]), flush=True)
    if options.bend:
        found["bend"] = bend(most, options.rows, stages)
    if options.pools:
        found["pools"] = pooled(max(3, most), options.rows, stages)
        print(json.dumps(found["pools"]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
