"""Batches for longer: kills with a real model, Ray with two workers and lost actors, a million rows read."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc

import fsspec
import numpy as np
import pytest
import tiny
from PIL import Image
from sana_nodes import batch
from sana_nodes.batch.checking import EmbeddedChecks, Rows, read_all
from sana_nodes.batch.columns import Columns
from sana_nodes.batch.tables import open_table
from sana_nodes.batch.urls import Url
from sana_nodes.batch.worker import Job, Stopped

WORKFLOW = tiny.REPOSITORY / "example_workflows" / "api" / "sana_sprint_text_to_image.json"
SETTINGS = ["--set", "3.width=32", "--set", "3.height=32"]


pytestmark = pytest.mark.usefixtures("no_host")


def lines_of(output) -> list[dict]:
    path = output / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def command(table, output, *more):
    return [
        sys.executable,
        "-m",
        "sana_nodes",
        "batch",
        str(WORKFLOW),
        str(table),
        *SETTINGS,
        "--output",
        str(output),
        *more,
    ]


def test_killed_twenty_times_with_a_model(tmp_path):
    table, count = tmp_path / "t.csv", 120
    rows = [f"r{i},a red ring on the left of a blue background,{i}" for i in range(count)]
    table.write_text("\n".join(["key,2.text,4.seed", *rows]) + "\n")
    subprocess.run(command(table, tmp_path / "whole"), check=True, capture_output=True)
    moment, output = random.Random(1), tmp_path / "killed"
    for _ in range(20):
        running = subprocess.Popen(
            command(table, output, "--limit", "10"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        before, deadline = len(lines_of(output)), time.monotonic() + moment.uniform(1, 15)
        while time.monotonic() < deadline and running.poll() is None and len(lines_of(output)) < before + 6:
            time.sleep(0.02)
        running.kill()
        running.communicate()
        keys = [line["key"] for line in lines_of(output)]
        assert len(set(keys)) == len(keys)
    subprocess.run(command(table, output), check=True, capture_output=True)
    whole, killed = lines_of(tmp_path / "whole"), lines_of(output)
    times = ("seconds", "ended", "files")
    assert [{k: v for k, v in line.items() if k not in times} for line in whole] == [
        {k: v for k, v in line.items() if k not in times} for line in killed
    ]
    assert {path.name for path in output.glob("*.png")} == {f"r{i}.png" for i in range(count)}
    for i in range(count):
        pair = [np.asarray(Image.open(folder / f"r{i}.png")).astype(int) for folder in (tmp_path / "whole", output)]
        assert np.abs(pair[0] - pair[1]).max() <= 2


def test_a_million_rows_are_read_in_flat_memory(place):
    """Of Python's; what SQLite keeps of the keys is in the test below."""

    def peak(count):
        table = open_table(place.points(count))
        job = Job(place.graph, frozenset(), place.root, place.root, None, place.root / "input")
        checks = EmbeddedChecks(job)
        rows = Rows(table, Columns(place.graph, checks.declared, texts=True), ())
        tracemalloc.start()
        try:
            assert len(read_all(rows, checks)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # what is loaded when it is first needed
    assert peak(50_000) - peak(10_000) < 40_000 * 5, "of which most is what the garbage collector has not seen yet"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("key", ["f'r{i}'", "f'{random.getrandbits(64):016x}'"], ids=["in order", "at random"])
def test_a_million_keys_take_no_memory(key):
    script = f"""
import random
from sana_nodes.batch.keys import Keys

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

keys = Keys()
for i in range(1_000_000):
    keys.add({key}, "0123456789abcdef", i)
    if i == 100_000:
        first = peak()
print(peak() - first)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000, "kB"


# ---- S3


def test_killed_and_resumed_on_s3(place, s3_server, monkeypatch):
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)
    output, count, moment = f"s3://bucket/{place.root.name}-killed", 60, random.Random(2)
    command = [sys.executable, "-m", "sana_nodes", "batch", str(place.workflow), str(place.points(count))]
    command += ["--output", output, "--input", str(place.root / "input")]
    for _ in range(5):
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(moment.randint(1, 12)):
            running.stdout.readline()
        time.sleep(moment.uniform(0, 0.05))
        running.kill()
        running.communicate()
    left = batch.run(place.workflow, place.points(count), output=output, input=place.root / "input")
    done = left.done
    assert 5 <= done < count and len(lines_at(output)) == done
    assert len(list(left)) == count - done, "a row that is done is not made again"
    assert [line["key"] for line in lines_at(output)] == [f"p{i}" for i in range(count)]
    found = Url(output).files(deep=True).keys() - {"manifest.parquet"}
    assert found == {"manifest.jsonl", *(f"p{i}.png" for i in range(count))}


def lines_at(url: str) -> list[dict]:
    return [json.loads(line) for line in (Url(f"{url}/manifest.jsonl").read() or b"").splitlines()]


# ---- Ray


@pytest.fixture
def ray():
    found = pytest.importorskip("ray", reason="ray is not installed: pip install sana-nodes[ray]")
    yield found
    found.shutdown()


def test_ray_with_two_workers_makes_what_one_process_makes(place, ray):
    table = place.points(40)
    records = list(batch.run(place.workflow, table, engine="ray", workers=2, **place.folders))
    place.assert_complete(40)
    alone = small_batch_elsewhere(place)
    times = ("seconds", "ended")
    assert [{k: v for k, v in line.items() if k not in times} for line in alone] == [
        {k: v for k, v in line.items() if k not in times} for line in place.manifest()
    ]
    assert len(records) == 40


def small_batch_elsewhere(place) -> list[dict]:
    options = {**place.folders, "output": place.root / "alone"}
    return list(batch.run(place.workflow, place.root / "points.csv", **options))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="workers are killed with a signal")
def test_ray_replaces_workers_that_are_killed(place, ray):
    count, killed = 120, 0
    running = batch.run(place.workflow, place.points(count), engine="ray", workers=2, batch=3, **place.folders)
    for number, _ in enumerate(running):
        if number in (10, 40, 70) and (found := processes_of("ray::ClusterWorker")):
            os.kill(found[0], signal.SIGKILL)
            killed += 1
    assert killed == 3
    place.assert_complete(count)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a raylet is killed with a signal")
def test_ray_continues_without_a_machine_that_is_lost(place, ray):
    """Its rows go to the workers that are left; a worker that no machine has room for does not hold them back."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        count, made = 60, 0
        running = batch.run(place.workflow, place.points(count), engine="ray", workers=2, **place.folders)
        for made, _ in enumerate(running, 1):
            if made == 10:
                cluster.remove_node(lost, allow_graceful=False)
        assert made == count
        place.assert_complete(count)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a raylet is killed with a signal")
def test_ray_that_lost_its_last_machine_ends_in_words(place, ray):
    """Soon, and the same call continues on a new cluster. Its workers live until Ray finds that the raylet is gone."""
    count, table, killed = 5000, place.points(5000), []

    def run():
        return batch.run(place.workflow, table, engine="ray", workers=2, **place.folders)

    with pytest.raises(Stopped, match="has lost its last machine; give the same command again"):
        for number, _ in enumerate(run()):
            if number == 10:
                os.kill(processes_of("raylet/raylet")[0], signal.SIGKILL)
                killed.append(time.monotonic())
    assert time.monotonic() - killed[0] < 120
    done = len(lines_of(place.output))
    assert 10 < done < count and len(list(run())) == count - done
    place.assert_complete(count)


def processes_of(title: str) -> list[int]:
    """Processes of Ray, by the title that it gives them, below this one."""
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    parents = {int(pid): int(parent) for pid, parent, *_ in (line.split(None, 2) for line in listed)}

    def is_below(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [int(line.split()[0]) for line in listed if title in line and is_below(int(line.split()[0]))]


def test_the_recipe_of_ray_data(place, ray):
    """That of docs/batch.md, with this place's workflow, table and folders."""
    pytest.importorskip("pandas", reason="Ray Data needs pandas: pip install 'ray[data]'")
    text = (tiny.REPOSITORY / "docs" / "batch.md").read_text(encoding="utf-8")
    code = text[text.index("import ray\n") :].partition("```")[0]
    code = code.replace("/shared/prompts.csv", "/shared/points.csv").replace("batch_size=500", "batch_size=20")
    code = code.replace("/shared/", f"{place.root}/")
    code = code.replace("batch=8", f"batch=8, input={str(place.root / 'input')!r}")
    place.points(40)
    script = place.root / "recipe.py"
    script.write_text("import ray\nray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n" + code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    index = "".join(path.read_text() for path in (place.root / "index").rglob("*.csv"))
    files = [line.split(",")[1].strip('"') for line in index.split() if line.strip('"').startswith("p")]
    assert len(files) == 40 and all((place.root / file).is_file() for file in files)
