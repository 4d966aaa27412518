"""``sana-nodes batch``: what it makes, what it remembers, and how it continues after any end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import time

import drawing
import numpy as np
import pytest
import small_batch
import tiny
from PIL import Image
from sana_nodes import batch, cli
from sana_nodes.batch import driver, manifest, worker
from sana_nodes.cli.calls import BadCall
from sana_nodes.host.embedded import kept

WORKFLOW = tiny.REPOSITORY / "example_workflows" / "api" / "sana_sprint_text_to_image.json"
SETTINGS = ["1.pipeline=tiny", "3.width=64", "3.height=64"]


pytestmark = pytest.mark.usefixtures("no_host")


def made(place, table, **options) -> list[dict]:
    return list(batch.run(place.workflow, table, **place.folders, **options))


def test_every_row_has_its_file_and_its_line(place):
    records = made(place, place.points(40))
    place.assert_complete(40)
    assert records == place.manifest()
    assert [record["row"] for record in records] == list(range(1, 41))
    for record in records:
        (file,) = record["files"]
        data = (place.output / file["name"]).read_bytes()
        assert file["bytes"] == len(data) and file["sha256"] == hashlib.sha256(data).hexdigest()
        assert record["device"] == "cpu" and record["versions"].keys() >= {"torch", "sana-nodes"}
    assert len({record["inputs"] for record in records}) == 40
    assert len({record["workflow"] for record in records}) == 1


def test_the_command_prints_files_and_progress(place, capsys):
    assert cli.main(["batch", *place.arguments(place.points(3))]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(place.output / f"p{i}.png") for i in range(3)]
    assert "3 rows, 0 done before, 3 to make" in err and "3 done in all" in err
    assert cli.main(["batch", *place.arguments(place.points(3)), "--json"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "3 rows, 3 done before, 0 to make" in err


def test_rows_without_keys_are_numbered_and_titles_and_mapped_columns_work(place):
    rows = [{"Image Composite Masked.x": 1, "row": 2, "note": "?"}, {"row": 3, "note": None}]
    records = made(place, rows, columns={"row": "2.y", "note": ""})
    assert [record["files"][0]["name"] for record in records] == ["000001.png", "000002.png"]
    boxes = [Image.open(place.output / record["files"][0]["name"]).getbbox()[:2] for record in records]
    assert boxes == [(1, 2), (0, 3)], "a cell that is missing leaves the workflow's value, not the last row's"


def test_the_limit_counts_the_rows_of_a_call(place):
    table = place.points(7)
    assert [len(made(place, table, limit=3)) for _ in range(4)] == [3, 3, 1, 0]
    place.assert_complete(7)


def test_parquet_table_and_manifest(place):
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    import pyarrow

    rows = {"key": [f"p{i}" for i in range(5)], "2.x": list(range(5)), "2.y": [0.0] * 5}
    parquet.write_table(pyarrow.table(rows), place.root / "points.parquet")
    made(place, place.root / "points.parquet")
    place.assert_complete(5)
    lines = parquet.read_table(place.output / "manifest.parquet").to_pylist()
    for line, record in zip(lines, place.manifest()):
        assert {**line, "versions": json.loads(line["versions"])} == record


def test_several_files_of_a_row(place):
    place.graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "deep/Mark"}}
    place.write_workflow()
    (record,) = made(place, [{"key": "a", "2.x": 1}])
    assert [file["name"] for file in record["files"]] == ["a.png", "a~2.png"]
    assert [Image.open(place.output / file["name"]).size[0] for file in record["files"]] == [small_batch.SIDE, 1]


# ---- failures


@pytest.fixture
def breaking(monkeypatch):
    """A node that raises the errors of a list, one at a call; at its end it works."""
    from sana_nodes.host.embedded.core_nodes import ImageCompositeMasked

    errors, usual = [], ImageCompositeMasked.composite

    def composite(self, *args, **inputs):
        error = errors.pop(0) if errors else None
        if error:
            raise error
        return usual(self, *args, **inputs)

    monkeypatch.setattr(ImageCompositeMasked, "composite", composite)
    return errors


def test_a_failed_row_is_told_and_the_next_call_makes_it(place, breaking, capsys):
    breaking += [None, ValueError("too far")]
    table = place.points(3)
    assert cli.main(["batch", *place.arguments(table)]) == 1
    err = capsys.readouterr().err
    assert "row 2 (p1): node 2 (Image Composite Masked): too far" in err and "1 failed" in err
    failed = place.manifest()[1]
    assert failed["error"].endswith("too far") and failed["files"] == [] and not (place.output / "p1.png").exists()
    assert cli.main(["batch", *place.arguments(table)]) == 0
    place.assert_complete(3)


def test_a_row_is_tried_again_as_often_as_asked(place, breaking):
    breaking += [*map(ValueError, "12"), None, *map(ValueError, "345")]
    records = made(place, place.points(3), retry=2, batch=1)
    assert [(record["key"], record["attempts"], record["error"] is None) for record in records] == [
        ("p0", 3, True),
        ("p1", 3, False),
        ("p2", 1, True),
    ]


def test_a_full_disk_ends_the_batch_and_no_row_is_lost(place, breaking, capsys):
    breaking += [None, OSError(errno.ENOSPC, "No space left on device")]
    table = place.points(4)
    assert cli.main(["batch", *place.arguments(table)]) == 1
    assert "no space is left for" in capsys.readouterr().err
    assert [line["key"] for line in place.manifest()] == ["p0"]
    assert cli.main(["batch", *place.arguments(table)]) == 0
    place.assert_complete(4)


def test_a_line_that_cannot_be_written_leaves_the_manifest_whole(place, monkeypatch):
    records = made(place, place.points(3))
    before = (place.output / "manifest.jsonl").read_bytes()
    opened = manifest.Manifest(place.output)

    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest.os, "fsync", refuse)
    with pytest.raises(OSError):
        opened.append(records[0])
    opened.close()
    assert (place.output / "manifest.jsonl").read_bytes() == before


def test_a_manifest_that_cannot_be_written_ends_the_batch_in_words(place, monkeypatch, capsys):
    table = place.points(3)

    def refuse(self, record):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(manifest.Manifest, "append", refuse)
        assert cli.main(["batch", *place.arguments(table)]) == 1
    said = capsys.readouterr().err
    assert "the results cannot be written" in said and "give the same command again" in said
    assert cli.main(["batch", *place.arguments(table)]) == 0
    place.assert_complete(3)


# ---- changes


def test_another_workflow_is_noticed(place, capsys):
    table = place.points(3)
    made(place, table)
    with pytest.raises(BadCall, match="3 rows were made with another workflow or other settings .such as 'p0'"):
        made(place, table, settings=["2.resize_source=true"])
    kept_files = batch.run(place.workflow, table, **place.folders, settings=["2.resize_source=true"], changed="keep")
    assert list(kept_files) == [] and "stay as they are" in kept_files.notes[0]
    again = batch.run(place.workflow, table, **place.folders, settings=["2.resize_source=true"], changed="again")
    assert len(list(again)) == 3 and "are made again" in again.notes[0]
    assert len(place.manifest()) == 3
    assert made(place, table, settings=["2.resize_source=true"]) == []


def test_another_row_and_another_image_are_noticed(place):
    rows = [{"key": "a", "2.x": 1, "5.image": "mark.png"}, {"key": "b", "2.x": 2, "5.image": "back.png"}]
    made(place, rows)
    rows[0]["2.x"] = 9
    with pytest.raises(BadCall, match="1 rows have changed .such as 'a'"):
        made(place, rows)
    assert [record["key"] for record in made(place, rows, changed="again")] == ["a"]
    assert Image.open(place.output / "a.png").getbbox()[0] == 9
    Image.new("RGB", (2, 1), "white").save(place.root / "input" / "mark.png")
    with pytest.raises(BadCall, match="1 rows have changed"):
        made(place, rows)


def test_new_rows_are_made_and_old_ones_stay(place):
    rows = [{"key": "b", "2.x": 1}, {"key": "c", "2.x": 2}]
    made(place, rows)
    changed = batch.run(place.workflow, [{"key": "a", "2.x": 3}, rows[0]], **place.folders)
    assert [record["key"] for record in changed] == ["a"] and "1 rows of the manifest are no longer" in changed.notes[0]
    assert [line["key"] for line in place.manifest()] == ["a", "b", "c"] and (place.output / "c.png").exists()


def test_a_file_that_is_gone_or_cut_is_made_again(place):
    table = place.points(3)
    made(place, table)
    (place.output / "p0.png").unlink()
    (place.output / "p2.png").write_bytes(b"x")
    assert [record["key"] for record in made(place, table)] == ["p0", "p2"]
    place.assert_complete(3)


def test_files_that_a_row_no_longer_has_are_removed(place):
    place.graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "Mark"}}
    place.write_workflow()
    made(place, place.points(1))
    del place.graph["4"]
    place.write_workflow()
    made(place, place.points(1), changed="again")
    place.assert_complete(1)


def test_two_batches_in_one_folder(place):
    first = batch.run(place.workflow, place.points(2), **place.folders)
    with pytest.raises(BadCall, match="another batch is writing into"):
        batch.run(place.workflow, place.points(2), **place.folders)
    list(first)
    assert made(place, place.points(2)) == []


def test_a_manifest_that_is_not_ours(place):
    place.output.mkdir()
    (place.output / "manifest.jsonl").write_text('{"name": 1}\n')
    with pytest.raises(BadCall, match="line 1: it is not a line of a manifest"):
        made(place, place.points(2))
    assert (place.output / "manifest.jsonl").read_text() == '{"name": 1}\n'


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_is_made_again(place, cut):
    table = place.points(3)
    made(place, table)
    path = place.output / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["key"] for record in made(place, table)] == ["p2"]
    place.assert_complete(3)


# ---- ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is a fork of this one")
def test_killed_at_random_moments(place):
    """kill -9 in the middle of rows: the same call continues, nothing twice, nothing missing, nothing half-written."""
    table, count, kills = place.points(60), 60, 0
    made(place, table, limit=1)  # what is loaded at the first row is loaded here
    random_moment = random.Random(4)
    while len(place.manifest()) < count and kills < 8:
        child = os.fork()
        if not child:
            try:
                made(place, table)
            finally:
                os._exit(0)
        time.sleep(random_moment.uniform(0.01, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        lines = place.manifest()
        assert len({line["key"] for line in lines}) == len(lines), "a row that is done is not made again"
    assert kills >= 3
    made(place, table)
    place.assert_complete(count)


def test_an_interrupt_drops_the_row_at_work(place, breaking):
    breaking += [None, None, KeyboardInterrupt()]
    table = place.points(5)
    with pytest.raises(KeyboardInterrupt):
        made(place, table)
    assert len(place.manifest()) == 2
    assert sorted(path.name for path in place.output.glob("[!.]*")) == ["manifest.jsonl", "p0.png", "p1.png"]
    made(place, table)
    place.assert_complete(5)


def test_rows_are_taken_together_unless_they_are_sent_to_servers(place):
    for engine, number in (("local", driver.TOGETHER), ("comfyui", 1)):
        assert driver.rows_at_once(None, engine) == number > 0
    running = batch.run(place.workflow, place.points(2), **place.folders)
    assert running.job.batch == driver.TOGETHER and len(list(running)) == 2


def test_the_first_interrupt_finishes_the_row(place, monkeypatch, capsys):
    usual, handler = worker.Worker._run, signal.getsignal(signal.SIGINT)

    def run(self, task):
        if task.number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(self, task)

    monkeypatch.setattr(worker.Worker, "_run", run)
    assert cli.main(["batch", *place.arguments(place.points(5)), "--batch", "1"]) == 130
    assert "finishing the rows at work" in capsys.readouterr().err
    assert [line["key"] for line in place.manifest()] == ["p0", "p1", "p2"]
    assert signal.getsignal(signal.SIGINT) is handler


# ---- with a model


def pixels(path):
    return np.asarray(Image.open(path))


def test_each_row_is_what_run_gives_alone(home, reference, tmp_path, capsys, monkeypatch):
    """And the model is loaded once, each prompt encoded once."""
    from sana_nodes.host.embedded import bridge
    from sana_nodes.networks.prompt_cache import PromptCache

    counts = {"model": 0, "prompt": 0}
    usual_model, usual_prompt = bridge.EmbeddedHost.model, PromptCache._computed
    monkeypatch.setattr(
        bridge.EmbeddedHost,
        "model",
        lambda *a, **k: [counts.update(model=counts["model"] + 1), usual_model(*a, **k)][1],
    )
    monkeypatch.setattr(
        PromptCache,
        "_computed",
        lambda self, module, prompts, *a: [
            counts.update(prompt=counts["prompt"] + len(prompts)),
            usual_prompt(self, module, prompts, *a),
        ][1],
    )
    texts = ["a red ring", "a blue ring", "a red ring", "a blue ring"]
    rows = [{"key": f"r{i}", "2.text": text, "4.seed": i % 3} for i, text in enumerate(texts)]
    rows[1]["3.height"] = 96
    options = {"settings": SETTINGS, "models": home / "models", "output": tmp_path / "out"}
    records = sorted(batch.run(WORKFLOW, rows, **options), key=lambda record: record["row"])
    assert counts == {"model": 1, "prompt": 2}
    assert [record["seed"] for record in records] == [0, 1, 2, 0]
    alone = []
    for row in rows:
        changes = [f"{name}={value}" for name, value in row.items() if name != "key"]
        places = ["--models", str(home / "models"), "--output", str(tmp_path / "alone"), "--host", "embedded"]
        sets = [part for change in [*SETTINGS, *changes] for part in ("--set", change)]
        assert cli.main(["run", str(WORKFLOW), *places, *sets]) == 0
        alone.append(pixels(capsys.readouterr().out.strip()))
    for record, image in zip(records, alone):
        assert drawing.same_pixels(pixels(tmp_path / "out" / record["files"][0]["name"]), image)
    assert not drawing.same_pixels(alone[0], alone[2])


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    """That of docs/batch.md as it stands, on the demo weights, with fewer and smaller rows."""
    text = (tiny.REPOSITORY / "docs" / "batch.md").read_text(encoding="utf-8")
    code = text[text.index("## In Python") :].split("```")[1].removeprefix("python\n")
    assert "range(100)" in code and code.count("=512") == 2
    (tmp_path / "workflow.json").write_text(WORKFLOW.read_text())
    monkeypatch.chdir(tmp_path)
    exec(code.replace("range(100)", "range(3)").replace("=512", "=32"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [[f"seed-{i}", f"seed-{i}.png"] for i in range(3)]
    assert all(float(seconds) > 0 and Image.open(tmp_path / "images" / name).size == (32, 32)
               for _, name, seconds in lines)  # fmt: skip


def test_prompts_are_kept_within_their_memory():
    import torch

    class Plan:
        graph, order, declared = {}, [], {}

    results = kept.Kept([], prompt_bytes=3 * 400)
    results._prompt_nodes = {"2"}
    for i in range(5):
        results.put("2", str(i), ([[torch.zeros(100), {}]],))
        results.get("0")
    assert [results.get(str(i)) is not None for i in range(5)] == [True, False, False, True, True]
    results.put("9", "x", (1,))
    assert results.get("x") is None


def test_nothing_of_an_earlier_row_is_kept(place):
    """Values that depend on a row are not held: memory stays flat."""
    import torch

    table = place.points(6)
    running = batch.run(place.workflow, table, **place.folders)
    held = [
        sum(value.nbytes for values in _values(running) for value in values if torch.is_tensor(value)) for _ in running
    ]
    assert len(set(held)) == 1


def _values(running):
    import gc

    return [values for found in gc.get_objects() if type(found) is kept.Kept for values in found._values.values()]
