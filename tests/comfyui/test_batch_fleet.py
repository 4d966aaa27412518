"""``sana-nodes batch --engine comfyui`` on two real servers: the rows that one process makes, none lost with one."""

from __future__ import annotations

import threading

import drawing
import graphs
import numpy as np
import pytest
from PIL import Image
from sana_nodes import batch
from sana_nodes import host as hosts
from sana_nodes.batch import servers
from server import Server

pytest.importorskip("websocket", reason="websocket-client is not installed: pip install sana-nodes[comfyui]")


@pytest.fixture(scope="module")
def homes(home, reference, tmp_path_factory):
    """Two base directories over the same models and nodes, each with its own input, output and user."""
    found = []
    for name in ("one", "two"):
        base = tmp_path_factory.mktemp(name)
        for folder in ("input", "output", "user", "temp"):
            (base / folder).mkdir()
        for folder in ("models", "custom_nodes"):
            (base / folder).symlink_to(home / folder, target_is_directory=True)
        found.append(base)
    return found


@pytest.fixture(scope="module")
def fleet(homes):
    with Server(homes[0]) as one, Server(homes[1]) as two:
        yield [one, two]


@pytest.fixture
def work(tmp_path):
    """A workflow whose input image lies on this machine alone, and what a batch of it takes."""
    (tmp_path / "input").mkdir()
    pixels = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "input" / "only-here.png")
    yield graphs.picture(graphs.example(denoise=0.8), "only-here.png"), {"input": tmp_path / "input"}
    hosts._current = None


def rows(count: int) -> list[dict]:
    return [{"key": f"r{i}", "2.text": f"a {('red', 'blue')[i % 2]} ring", "4.seed": i // 2} for i in range(count)]


def addresses(fleet) -> str:
    return ",".join(f"127.0.0.1:{server.port}" for server in fleet)


def pixels_of(folder, count: int) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / f"r{i}.png")) for i in range(count)]


def test_two_servers_make_what_one_process_makes(fleet, home, work, tmp_path):
    graph, options = work
    texts, count = [], 10
    running = batch.run(
        graph, rows(count), engine="comfyui", address=addresses(fleet), output=tmp_path / "fleet", **options
    )
    running.on_step = texts.append
    records = list(running)
    assert [record["error"] for record in records] == [None] * count
    assert all(record["versions"]["comfyui"] and record["device"] for record in records)
    assert {text.rpartition(" on ")[2] for text in texts} == set(addresses(fleet).split(",")), "both told steps"
    alone = list(batch.run(graph, rows(count), models=home / "models", output=tmp_path / "alone", **options))
    for one, two in zip(pixels_of(tmp_path / "fleet", count), pixels_of(tmp_path / "alone", count)):
        assert drawing.same_pixels(one, two)
    compared = [
        {key: record[key] for key in ("key", "row", "inputs", "workflow", "seed", "error")}
        for record in sorted(records, key=lambda record: record["row"])
    ]
    assert compared == [{key: record[key] for key in compared[0]} for record in alone]


def test_a_row_that_a_server_refuses(fleet, work, tmp_path):
    graph, options = work
    table = [{"key": "bad", "4.steps": 2, "4.max_timesteps": 0.5, "4.intermediate_timesteps": 1.3}, *rows(2)]
    records = batch.run(graph, table, engine="comfyui", address=addresses(fleet), output=tmp_path / "out", **options)
    errors = {record["key"]: record["error"] for record in records}
    assert errors.pop("bad") and set(errors.values()) == {None}


def test_rows_of_a_server_that_is_killed_go_to_the_other(homes, fleet, work, tmp_path, monkeypatch):
    """And a batch that had only that one left is resumed on the other."""
    monkeypatch.setattr(servers, "PATIENCE", 1.0)
    graph, options = work
    with Server(homes[0]) as doomed:
        both = addresses([doomed, fleet[1]])
        running = batch.run(graph, rows(16), engine="comfyui", address=both, output=tmp_path / "out", **options)
        made = []
        for number, record in enumerate(running):
            made.append(record["key"])
            if number == 3:
                threading.Thread(target=doomed.process.kill).start()
        doomed.process.wait(30)
    assert sorted(made) == sorted(f"r{i}" for i in range(16))
    assert len(pixels_of(tmp_path / "out", 16)) == 16
