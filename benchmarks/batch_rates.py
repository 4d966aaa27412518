"""What a row costs in ``sana-nodes batch``: against loops that do the same, in each engine, and in a table's check.

    python benchmarks/batch_rates.py rates [--rows 100] [--shell 5] [--turns 3]
    python benchmarks/batch_rates.py overhead [--rows 500] [--turns 3]
    python benchmarks/batch_rates.py table [--rows 1000000]

``rates`` compares the batch with the shell loop and with a loop in one process that loads the models once, on the demo
weights at the smallest size, taking turns. ``overhead`` runs core nodes that take no time: milliseconds of a row in the
bare executor, in the engine local and on one worker of Ray. ``table`` reads a table of them: rows a second of the
check, and its memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batch_runs import SETTINGS, WORKFLOW, prompts
from PIL import Image


def shell_loop(count: int, folder: Path) -> float:
    """Seconds a row of ``sana-nodes run`` in a loop."""
    begin = time.perf_counter()
    for _, text, seed in prompts(count):
        settings = [*SETTINGS, f"2.text={text}", f"4.seed={seed}"]
        sets = [part for setting in settings for part in ("--set", setting)]
        start = [sys.executable, "-m", "sana_nodes", "run", str(WORKFLOW), "--host", "embedded"]
        subprocess.run([*start, *sets, "--output", str(folder)], check=True, capture_output=True)
    return (time.perf_counter() - begin) / count


def loaded_loop(count: int, folder: Path) -> float:
    """Seconds a row of a loop that loads the models once, and encodes, samples, decodes and saves one after another."""
    from sana_nodes import NODE_CLASS_MAPPINGS, host
    from sana_nodes.host.embedded.core_nodes import CORE_NODES

    here = host.use("embedded")
    here.folders.output = folder  # type: ignore[attr-defined]
    graph = json.loads(WORKFLOW.read_text())
    graph["1"]["inputs"]["pipeline"] = "sana-sprint-demo"
    graph["3"]["inputs"] |= {"width": 32, "height": 32}

    def call(key: str, values: dict, **more: object) -> tuple:
        node = graph[key]
        cls = {**CORE_NODES, **NODE_CLASS_MAPPINGS}[node["class_type"]]
        inputs = {k: values[v[0]][v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
        result = getattr(cls(), cls.FUNCTION)(**{**inputs, **more})
        return result["result"] if isinstance(result, dict) else result

    values = {"1": call("1", {}), "3": call("3", {})}
    begin = 0.0
    for number, (_, text, seed) in enumerate(prompts(count + 1)):
        begin = begin or (time.perf_counter() if number else 0.0)
        values["2"] = call("2", values, text=text)
        values["4"] = call("4", values, seed=seed)
        values["5"] = call("5", values)
        call("6", values, folders=here.folders, prompt=None)  # type: ignore[attr-defined]
    return (time.perf_counter() - begin) / count


def batched(count: int, folder: Path, batch: int) -> tuple[float, float]:
    """Seconds a row of the batch, from its first row on, and with its start."""
    from sana_nodes.batch import run as start

    begin = time.perf_counter()
    rows = [{"key": key, "2.text": text, "4.seed": seed} for key, text, seed in prompts(count + batch)]
    running = iter(start(WORKFLOW, rows, output=folder, settings=SETTINGS, batch=batch))
    for _ in range(batch):
        next(running)
    first = time.perf_counter()
    made = sum(1 for _ in running)
    return (time.perf_counter() - first) / made, (time.perf_counter() - begin) / (count + batch)


def rates(given: argparse.Namespace) -> dict:
    found: dict[str, list[float]] = {}
    for turn in range(given.turns):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ways = {"loaded_s": lambda: loaded_loop(given.rows, folder / "loaded")}  # noqa: B023
            if given.shell:
                ways["shell_s"] = lambda: shell_loop(given.shell, folder / "shell")  # noqa: B023
            for batch in (1, 8, 32):
                ways[f"batch_{batch}_s"] = lambda n=batch: batched(given.rows, folder / f"b{n}", n)[0]  # noqa: B023
            for way in sorted(ways, reverse=bool(turn % 2)):
                found.setdefault(way, []).append(ways[way]())
        print(json.dumps({way: round(values[-1], 4) for way, values in found.items()}), flush=True)
    return {"median": faster(found, statistics.median), "least": faster(found, min)}


def faster(found: dict[str, list[float]], of_turns: Callable[[list[float]], float]) -> dict:
    """Seconds a row, and how many times faster the batches are than the loops."""
    seconds = {way: round(of_turns(values), 4) for way, values in found.items()}
    batches, loops = ({w for w in seconds if w.startswith("batch") is kind} for kind in (True, False))
    ratios = {
        way: {f"of {loop}": round(seconds[loop] / seconds[way], 2) for loop in sorted(loops)} for way in sorted(batches)
    }
    return {**seconds, "times_faster": ratios}


def overhead(given: argparse.Namespace) -> dict:
    """Milliseconds of a row of core nodes: the executor alone, and what each engine adds to it."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        for turn in range(given.turns):
            ways = {"executor_ms": lambda: executed(given.rows, folder)}
            for engine, more in (("local", {}), ("ray", {"workers": 1})):
                ways[f"{engine}_ms"] = lambda e=engine, m=more, t=turn: engined(given.rows, folder, f"{e}{t}", e, **m)
            for way in sorted(ways, reverse=bool(turn % 2)):
                found.setdefault(way, []).append(1000 * ways[way]())
            print(json.dumps({way: round(values[-1], 2) for way, values in found.items()}), flush=True)
    return {way: round(min(values), 2) for way, values in found.items()}  # other programs use the machine too


def executed(count: int, folder: Path) -> float:
    """Seconds a row in the embedded executor, each graph checked and run as ``sana-nodes run`` does it."""
    from sana_nodes import NODE_CLASS_MAPPINGS, host
    from sana_nodes.host.embedded import graph as executor

    folders = host.use("embedded").folders  # type: ignore[attr-defined]
    folders.input, folders.output = folder, folder / "executed"
    begin = time.perf_counter()
    for number in range(count):
        executor.run(core_graph(number % 97), NODE_CLASS_MAPPINGS, folders)
    return (time.perf_counter() - begin) / count


def engined(count: int, folder: Path, name: str, engine: str, **more: Any) -> float:
    """Seconds a row in an engine, from its first row to its last one."""
    from sana_nodes.batch import run as start

    rows = [{"key": f"p{i}", "2.x": i % 97} for i in range(count)]
    folders = {"output": folder / name, "input": folder}
    running = iter(start(core_graph(0), rows, engine=engine, batch=1, **folders, **more))
    next(running)
    begin = time.perf_counter()
    times = [time.perf_counter() for _ in running]
    return (times[-1] - begin) / len(times)


def core_graph(x: int) -> dict:
    """Core nodes that take no time."""
    links = {"destination": ["1", 0], "source": ["1", 0]}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "ImageCompositeMasked", "inputs": {**links, "x": x, "y": 0, "resize_source": False}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "Sana"}},
    }


def table(given: argparse.Namespace) -> dict:
    """A table of two inputs of core nodes, checked whole; peak memory by the system."""
    import resource

    from sana_nodes.batch.checking import EmbeddedChecks, Rows, read_all
    from sana_nodes.batch.columns import Columns
    from sana_nodes.batch.tables import open_table
    from sana_nodes.batch.worker import Job

    graph = core_graph(0)
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), []
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        for count in (given.rows // 10, given.rows):
            with (folder / "t.csv").open("w") as file:
                file.write("key,2.x,2.y\n")
                file.writelines(f"p{i},{i % 97},{i % 89}\n" for i in range(count))
            checks = EmbeddedChecks(Job(graph, frozenset(), folder, folder, None, folder))
            rows = Rows(open_table(folder / "t.csv"), Columns(graph, checks.declared, texts=True), (folder,))
            begin = time.perf_counter()
            assert len(read_all(rows, checks)) == count
            rate = round(count / (time.perf_counter() - begin))
            peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            found.append({"rows": count, "rows_per_s": rate, "peak_mb": peak})
        return {"tables": found}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a row costs in a batch.")
    ways = parser.add_subparsers(required=True)
    for call, rows in ((rates, 100), (overhead, 500), (table, 1_000_000)):
        way = ways.add_parser(call.__name__)
        way.add_argument("--rows", type=int, default=rows)
        way.add_argument("--shell", type=int, default=5)
        way.add_argument("--turns", type=int, default=3)
        way.set_defaults(call=call)
    given = parser.parse_args()
    print(json.dumps(given.call(given)))


if __name__ == "__main__":
    main()
