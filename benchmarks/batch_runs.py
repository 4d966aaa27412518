"""Long runs of ``sana-nodes batch`` with the demo weights at the smallest size: rate, memory, kills, and equal results.

    python benchmarks/batch_runs.py OUTPUT [--rows 2000] [--kills K --victim process|worker|raylet|server]
                                    [--servers N] [--against OTHER] [-- OPTIONS OF sana-nodes batch]

It makes a table of prompts and seeds, and runs it: killed K times at random moments (seeded) and given again each time,
then to its end. Every row must be there once. ``--servers`` starts servers of COMFYUI_PATH for the engine comfyui; one
that is killed is started again, for half of the kills while the command runs. ``--against`` compares the images and
the manifest with those of another output. Memory is the resident memory of the command, from a quarter of the rows on
to the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from batch_fleet import Fleet

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "example_workflows" / "api" / "sana_sprint_text_to_image.json"
SETTINGS = ("1.pipeline=sana-sprint-demo", "3.width=32", "3.height=32")
COLOURS, SHAPES = ("red", "green", "blue", "yellow", "white", "black"), ("circle", "square", "ring", "cross")
TIMES = ("seconds", "ended")
"""What of a line may differ from run to run."""


def prompts(count: int) -> list[tuple[str, str, int]]:
    """Key, prompt and seed of each row."""
    found = []
    for i in range(count):
        colour, shape, behind = COLOURS[i % 6], SHAPES[i // 6 % 4], COLOURS[(i + 1 + i // 24 % 5) % 6]
        found.append((f"r{i:06}", f"a {colour} {shape} on the left of a {behind} background", i))
    return found


def table_of(count: int, path: Path) -> Path:
    path.write_text("key,2.text,4.seed\n" + "".join(f"{key},{text},{seed}\n" for key, text, seed in prompts(count)))
    return path


def command(table: Path, output: Path, options: Sequence[str]) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    start = [sys.executable, "-m", "sana_nodes", "batch", str(WORKFLOW), str(table), "--output", str(output)]
    return [*start, *settings, *options]


def lines_of(output: Path) -> list[dict]:
    path = output / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def count_of(output: Path) -> int:
    path = output / "manifest.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def below(parent: int) -> dict[int, str]:
    """The processes that a process started, and those below them, with their titles."""
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [(int(pid), int(above), title) for pid, above, title in (line.split(None, 2) for line in listed)]
    found: dict[int, str] = {parent: ""}
    for _ in range(6):
        found |= {pid: title for pid, above, title in rows if above in found}
    return found


VICTIMS = {"worker": "ray::ClusterWorker", "raylet": "raylet/raylet"}


def kill(running: subprocess.Popen, victim: str, moment: random.Random) -> None:
    """The command itself; or a worker or the raylet of its cluster, after which it continues or ends."""
    targets = [pid for pid, title in below(running.pid).items() if VICTIMS.get(victim, "-") in title]
    if victim == "process":
        targets = [running.pid]
    if targets:
        os.kill(moment.choice(targets), signal.SIGKILL)


def resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


class Killed:
    """A command that is killed, or whose workers or servers are, at random moments; it is given again when it ended.

    Where a worker or a server was killed it continues, or is interrupted and given again, by chance.
    """

    def __init__(self, arguments: Sequence[str], given: argparse.Namespace, fleet: Fleet | None):
        self.arguments, self.given, self.fleet, self.moment = arguments, given, fleet, random.Random(given.kills)
        self.running: subprocess.Popen | None = None

    def once(self) -> dict:
        output, victim, moment = self.given.output, self.given.victim, self.moment
        if self.running is None:
            self.running = subprocess.Popen(self.arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        running, before = self.running, count_of(output)
        wait_for(before + moment.randint(1, max(1, self.given.rows // 40)), output, running)
        time.sleep(moment.uniform(0, 0.2))
        at, continues = count_of(output), moment.random() < 0.5
        assert running.poll() is None, "the command ended by itself: give it more rows"
        if self.fleet is not None:
            self._kill_server(self.fleet, moment.randrange(self.given.servers), moment.random() < 0.5)
        else:
            kill(running, victim, moment)
        if victim in ("worker", "server"):
            wait_for(count_of(output) + 2, output, running)
            if not continues:
                running.send_signal(signal.SIGINT)
        if continues and victim in ("worker", "server"):
            code = running.poll()
        else:
            code, self.running = running.wait(600), None
        keys = [line["key"] for line in lines_of(output)]
        assert len(keys) == len(set(keys)), "a row was made twice"
        return {"before": before, "at": at, "after": len(keys), "exit_code": code}

    def _kill_server(self, fleet: Fleet, number: int, at_once: bool) -> None:
        """And start it again: at once, or when the others have made rows meanwhile."""
        fleet.kill(number)
        if not at_once and self.running is not None:
            wait_for(count_of(self.given.output) + 2, self.given.output, self.running)
        fleet.start_again(number)

    def end(self) -> None:
        """The command that still runs finishes its rows at work."""
        if self.running is not None:
            self.running.send_signal(signal.SIGINT)
            self.running.wait(600)


def wait_for(rows: int, output: Path, running: subprocess.Popen) -> None:
    """Until so many rows are in the manifest, or the command has ended."""
    while count_of(output) < rows and running.poll() is None:
        time.sleep(0.02)


def whole(arguments: Sequence[str], output: Path, rows: int) -> dict:
    """The run to its end: seconds from its first row to its last one, and its memory from a quarter of them on."""
    begin, before = time.perf_counter(), count_of(output)
    running = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    first, memory = 0.0, []
    while running.poll() is None:
        made = count_of(output) - before
        first = first or (time.perf_counter() if made else 0.0)
        if (rows - before) / 4 <= made < rows - before:
            memory.append(resident(running.pid))
        time.sleep(0.25)
    errors = running.stderr.read() if running.stderr else ""
    assert running.returncode == 0, errors[-2000:]
    seconds, made = time.perf_counter() - (first or begin), rows - before
    found = {"rows": made, "rows_per_s": round(made / seconds, 3), "start_s": round((first or begin) - begin, 1)}
    return {**found, **flatness([value for value in memory if value])}


def flatness(memory: Sequence[int]) -> dict:
    """The median of the first and of the last tenth of the samples, in MB, and how much it grew."""
    tenth = max(1, len(memory) // 10)
    if len(memory) < 2 * tenth:
        return {}
    first, last = (statistics.median(part) / 1e6 for part in (memory[:tenth], memory[-tenth:]))
    return {"memory_mb": [round(first), round(last)], "memory_growth": round(last / first - 1, 4)}


def compared(output: Path, other: Path) -> dict:
    """The largest difference of a pixel, how many images and files differ at all, and what differs in the manifests.

    Where only ``TIMES`` differ, they are the same byte by byte without these.
    """
    fields: set[str] = set()
    largest, images, files = 0, 0, 0
    pairs = list(zip(lines_of(output), lines_of(other), strict=True))
    for ours, theirs in pairs:
        fields |= {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
        files += ours["files"] != theirs["files"]
        assert [file["name"] for file in ours["files"]] == [file["name"] for file in theirs["files"]]
        for file in ours["files"]:
            pair = [np.asarray(Image.open(folder / file["name"])).astype(int) for folder in (output, other)]
            found = int(np.abs(pair[0] - pair[1]).max())
            largest, images = max(largest, found), images + bool(found)
    counts = {"rows_compared": len(pairs), "images_that_differ": images, "files_that_differ": files}
    return {**counts, "largest_difference": largest, "fields_that_differ": sorted(fields - set(TIMES))}


def run(given: argparse.Namespace) -> dict:
    if not given.servers:
        return run_on(given, given.options, None)
    from batch_fleet import Fleet

    with tempfile.TemporaryDirectory() as name, Fleet(given.servers, Path(name)) as fleet:
        return run_on(given, ["--engine", "comfyui", "--address", fleet.address, *given.options], fleet)


def run_on(given: argparse.Namespace, options: Sequence[str], fleet: Fleet | None) -> dict:
    shutil.rmtree(given.output, ignore_errors=True)
    table = table_of(given.rows, given.output.with_suffix(".csv"))
    arguments = command(table, given.output, options)
    found: dict = {"options": given.options, "kills": 0}
    killed = Killed(arguments, given, fleet if given.victim == "server" else None)
    for found["kills"] in range(1, given.kills + 1):
        print(json.dumps(killed.once()), flush=True)
    killed.end()
    if count_of(given.output) < given.rows:
        found |= whole(arguments, given.output, given.rows)
    lines = lines_of(given.output)
    assert [line["key"] for line in lines] == [key for key, _, _ in prompts(given.rows)], "rows are missing"
    assert all(line["error"] is None for line in lines)
    assert {path.name for path in given.output.glob("*.png")} == {line["files"][0]["name"] for line in lines}
    found |= {"rows_in_all": len(lines), "attempts": max(line["attempts"] for line in lines)}
    if given.against:
        found |= compared(given.output, given.against)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Long runs of a batch with the demo weights.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--victim", choices=("process", *VICTIMS, "server"), default="process")
    parser.add_argument("--servers", type=int, default=0)
    parser.add_argument("--against", type=Path)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:end])
    given.options = sys.argv[end + 1 :]
    print(json.dumps(run(given)))


if __name__ == "__main__":
    main()
