"""The order in which rows are made, and what happens at the same time: few changes of models, saving meanwhile."""

from __future__ import annotations

import errno
import threading
from itertools import count, islice

import pytest
import tiny
from sana_nodes import batch, cli
from sana_nodes.batch import ordering, worker
from sana_nodes.batch.ordering import ordered
from sana_nodes.batch.worker import Task
from sana_nodes.host.embedded import core_nodes

WORKFLOW = tiny.REPOSITORY / "example_workflows" / "api" / "sana_sprint_text_to_image.json"

pytestmark = pytest.mark.usefixtures("no_host")


def tasks(models: str, sizes: str | None = None) -> list[Task]:
    sizes = sizes or "s" * len(models)
    return [Task(i, str(i), {"1": {"size": size}}, "", name) for i, (name, size) in enumerate(zip(models, sizes))]


def order(given, alike=None) -> str:
    return " ".join(task.key for task in ordered(iter(given), alike))


def test_rows_of_one_model_come_after_one_another():
    assert order(tasks("abab")) == "0 2 1 3"
    assert order(tasks("aaaa")) == "0 1 2 3"


def test_rows_that_share_a_batch_come_after_one_another():
    assert order(tasks("aaaa", "xyxy"), lambda inputs: inputs["1"]["size"]) == "0 2 1 3"
    assert order(tasks("abab", "xyyx"), lambda inputs: inputs["1"]["size"]) == "0 2 1 3"
    assert order(tasks("aaaa", "xyzw"), lambda inputs: inputs["1"]["size"]) == "0 1 2 3"


def test_the_models_that_are_loaded_stay_for_the_next_rows(monkeypatch):
    monkeypatch.setattr(ordering, "AHEAD", 4)
    assert order(tasks("abababab")) == "0 2 1 3 5 7 4 6"


def test_a_table_is_not_held_whole():
    endless = (Task(i, str(i), {}, "", "ab"[i % 2]) for i in count())
    assert [task.number for task in islice(ordered(endless, None), 3)] == [0, 2, 4]
    assert next(endless).number == ordering.AHEAD


def test_models_are_changed_once(home, reference, tmp_path, monkeypatch):
    from sana_nodes.host.embedded import bridge

    loads, usual = [], bridge.EmbeddedHost.model
    monkeypatch.setattr(bridge.EmbeddedHost, "model", lambda self, *given: [loads.append(1), usual(self, *given)][1])
    rows = [{"key": f"r{i}", "1.weight_dtype": ("fp32", "default")[i % 2], "4.seed": i} for i in range(6)]
    options = {"settings": ["1.pipeline=tiny", "3.width=64", "3.height=64"], "models": home / "models"}
    made = [line["key"] for line in batch.run(WORKFLOW, rows, output=tmp_path / "out", batch=2, **options)]
    assert made == ["r0", "r2", "r4", "r1", "r3", "r5"] and len(loads) == 2
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [line.split('"key":"')[1][:2] for line in lines] == [f"r{i}" for i in range(6)]


def test_the_command_takes_a_batch(place, capsys):
    table = place.points(10)
    assert cli.main(["batch", *place.arguments(table), "--batch", "4"]) == 0
    place.assert_complete(10)
    assert cli.main(["batch", *place.arguments(table), "--batch", "0"]) == 2
    assert "batch is 0; give 1 or more" in capsys.readouterr().err
    assert cli.main(["batch", *place.arguments(table), "--batch", "2", "--engine", "comfyui"]) == 2
    assert "a ComfyUI server runs one row at a time" in capsys.readouterr().err


# ---- saving


@pytest.fixture
def composites(monkeypatch):
    """Called at each composition with its number, from 0."""
    seen, usual = [], core_nodes.ImageCompositeMasked.composite
    hooks: list = [lambda number: None]

    def composite(self, **inputs):
        seen.append(1)
        hooks[0](len(seen) - 1)
        return usual(self, **inputs)

    monkeypatch.setattr(core_nodes.ImageCompositeMasked, "composite", composite)
    return hooks


@pytest.fixture
def saves(monkeypatch):
    seen, usual = [], core_nodes._saved
    hooks: list = [lambda number: None]

    def saved(*given):
        seen.append(1)
        hooks[0](len(seen) - 1)
        return usual(*given)

    monkeypatch.setattr(core_nodes, "_saved", saved)
    return hooks


def test_a_row_is_saved_while_the_next_one_is_computed(place, composites, saves):
    second = threading.Event()
    composites[0] = lambda number: second.set() if number == 1 else None
    saves[0] = lambda number: None if number or second.wait(20) else pytest.fail("the second row was not begun")
    assert all(record["error"] is None for record in batch.run(place.workflow, place.points(3), **place.folders))
    place.assert_complete(3)


def test_few_rows_wait_to_be_saved(place, composites, saves):
    begun, saved, most = [], [], []

    def compose(number):
        begun.append(number)
        most.append(len(begun) - len(saved))

    composites[0], saves[0] = compose, lambda number: [threading.Event().wait(0.01), saved.append(number)]
    list(batch.run(place.workflow, place.points(20), **place.folders))
    assert worker.UNSAVED <= max(most) <= worker.UNSAVED + 2


def test_a_row_that_fails_while_it_is_saved_is_tried_again(place, saves):
    def fail(number):
        if number in (1, 3):
            raise ValueError("no pen")

    saves[0] = fail
    records = list(batch.run(place.workflow, place.points(3), retry=1, **place.folders))
    assert {record["key"]: record["attempts"] for record in records}.keys() == {"p0", "p1", "p2"}
    assert sorted(record["attempts"] for record in records) in ([1, 2, 2], [1, 1, 2])
    failed = [record for record in records if record["error"]]
    assert all(record["error"] == "node 3 (Save Image): no pen" for record in failed)


def test_a_disk_that_is_full_when_a_row_is_saved(place, saves):
    def fail(number):
        if number == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    saves[0] = fail
    with pytest.raises(worker.Stopped, match="no space is left"):
        list(batch.run(place.workflow, place.points(6), **place.folders))
    assert [line["key"] for line in place.manifest()] == ["p0", "p1"]
    saves[0] = lambda number: None
    list(batch.run(place.workflow, place.points(6), **place.folders))
    place.assert_complete(6)


def test_an_interrupt_leaves_nothing_half_saved(place, composites, saves):
    def stop(number):
        if number == 3:
            raise KeyboardInterrupt

    composites[0] = stop
    saves[0] = lambda number: threading.Event().wait(0.05)
    with pytest.raises(KeyboardInterrupt):
        list(batch.run(place.workflow, place.points(6), **place.folders))
    assert [line["key"] for line in place.manifest()] == ["p0", "p1", "p2"], "rows that were computed are kept"
    assert {path.name for path in place.output.glob("*.png")} == {"p0.png", "p1.png", "p2.png"}
    assert [path.name for path in (place.output / ".sana-batch").iterdir()] == ["lock"]
    composites[0] = lambda number: None
    list(batch.run(place.workflow, place.points(6), **place.folders))
    place.assert_complete(6)
