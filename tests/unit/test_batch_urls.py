"""Tables, outputs and models of a batch at URLs: a store in memory, and a server that speaks S3."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from errno import ENOSYS
from functools import partial

import fsspec
import pytest
import small_batch
import tiny
from PIL import Image
from sana_nodes import batch, cli
from sana_nodes.batch import lock, outputs
from sana_nodes.batch.urls import Url, local_or_url
from sana_nodes.batch.worker import Stopped
from sana_nodes.cli.calls import BadCall

WORKFLOW = tiny.REPOSITORY / "example_workflows" / "api" / "sana_sprint_text_to_image.json"

pytestmark = pytest.mark.usefixtures("no_host")


@pytest.fixture(params=["memory", "s3"])
def store(request, monkeypatch, tmp_path):
    """A URL of an empty folder, in each store."""
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_server").items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)
    return f"{request.param}://bucket/{tmp_path.name}"


def lines_at(url: str) -> list[dict]:
    return [json.loads(line) for line in (Url(f"{url}/manifest.jsonl").read() or b"").splitlines()]


def assert_complete(url: str, count: int) -> None:
    lines = lines_at(url)
    assert [line["key"] for line in lines] == [f"p{i}" for i in range(count)]
    found = Url(url).files(deep=True)
    assert found.keys() - {"manifest.parquet"} == {"manifest.jsonl", *(f"p{i}.png" for i in range(count))}
    for i, line in enumerate(lines):
        with Url(f"{url}/p{i}.png").open() as file, Image.open(file) as image:
            x, y = i % small_batch.SIDE, i // small_batch.SIDE % small_batch.SIDE
            assert image.getbbox() == (x, y, x + 1, y + 1)
        assert line["files"][0]["bytes"] == found[f"p{i}.png"]


def uploaded(place, store: str, count: int) -> str:
    """A table of the store."""
    Url(f"{store}/tables/points.csv").put(place.points(count))
    return f"{store}/tables/points.csv"


def made(place, table, output, **options) -> list[dict]:
    return list(batch.run(place.workflow, table, output=output, input=place.root / "input", **options))


def test_table_and_output_at_a_url(place, store, capsys):
    table, output = uploaded(place, store, 12), f"{store}/out"
    arguments = [str(place.workflow), table, "--output", output, "--input", str(place.root / "input")]
    assert cli.main(["batch", *arguments]) == 0
    assert capsys.readouterr().out.split() == [f"{output}/p{i}.png" for i in range(12)]
    assert_complete(output, 12)
    assert made(place, table, output) == [], "nothing is made twice"


def test_a_parquet_table_at_a_url(place, store):
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    import pyarrow

    whole = place.root / "points.parquet"
    parquet.write_table(pyarrow.table({"key": ["p0", "p1"], "2.x": [0, 1], "2.y": [0, 0]}), whole)
    Url(f"{store}/points.parquet").put(whole)
    made(place, f"{store}/points.parquet", f"{store}/out")
    assert_complete(f"{store}/out", 2)
    Url(f"{store}/points.parquet").write(whole.read_bytes()[:-20])
    with pytest.raises(BadCall, match="is not a whole parquet file"):
        made(place, f"{store}/points.parquet", f"{store}/out")


def test_lines_are_durable_one_by_one_and_gathered(place, store, monkeypatch):
    monkeypatch.setattr(outputs, "LINES_OF_PART", 4)
    output = f"{store}/out"
    running = iter(batch.run(place.workflow, place.points(11), output=output, input=place.root / "input"))
    for _ in range(6):
        next(running)
    hidden = Url(f"{output}/.sana-batch").files(deep=True)
    assert sum(name.startswith("parts/") for name in hidden) == 1
    assert sum(name.startswith("rows/") for name in hidden) == 2
    running.close()  # as a process that ends: nothing is gathered
    again = batch.run(place.workflow, place.points(11), output=output, input=place.root / "input")
    assert again.done == 6 and len(lines_at(output)) == 6
    assert Url(f"{output}/.sana-batch").files(deep=True).keys() == {"lock.json"}
    assert len(list(again)) == 5
    assert_complete(output, 11)


def test_a_row_that_changed_and_files_that_are_gone(place, store):
    output, rows = f"{store}/out", [{"key": "p0", "2.x": 0}, {"key": "p1", "2.x": 9}]
    made(place, rows, output)
    rows[1]["2.x"] = 1
    with pytest.raises(BadCall, match="1 rows have changed .such as 'p1'"):
        made(place, rows, output)
    assert [record["key"] for record in made(place, rows, output, changed="again")] == ["p1"]
    Url(output).remove("p0.png", "absent.png")
    assert [record["key"] for record in made(place, rows, output)] == ["p0"]
    assert_complete(output, 2)


def test_models_at_a_url(home, reference, store, tmp_path, monkeypatch):
    """Those that the workflow names are copied, once, and only those."""
    monkeypatch.setenv("SANA_NODES_CACHE", str(tmp_path / "cache"))
    source, models = home / "models" / "diffusers" / "tiny", Url(f"{store}/models")
    for file in filter(os.path.isfile, source.rglob("*")):
        models.child(f"diffusers/tiny/{file.relative_to(source).as_posix()}").put(file)
    models.child("diffusers/other/model_index.json").write(b"{}")
    options = {"settings": ["1.pipeline=tiny", "3.width=64", "3.height=64"], "models": f"{store}/models"}
    rows = [{"key": "a", "4.seed": 1}]
    (record,) = batch.run(WORKFLOW, rows, output=tmp_path / "out", **options)
    assert record["error"] is None
    (copies,) = (tmp_path / "cache" / "models").iterdir()
    assert {path.name for path in (copies / "diffusers").iterdir()} == {"tiny"}
    gets = []
    monkeypatch.setattr(Url, "get", lambda *given: gets.append(given))
    list(batch.run(WORKFLOW, rows, output=tmp_path / "out2", **options))
    assert not gets and (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "out2" / "a.png").read_bytes()
    options["settings"][0] = "1.pipeline=absent"
    with pytest.raises(BadCall, match="absent"):
        batch.run(WORKFLOW, rows, output=tmp_path / "out3", **options)


# ---- two batches at once


@pytest.fixture
def quick_lock(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 1.0)


def begun(place, output):
    """A batch that has made a row."""
    running = iter(batch.run(place.workflow, place.points(3), output=output, input=place.root / "input"))
    next(running)
    return running


def test_a_second_batch_into_a_url_is_refused(place, store, quick_lock):
    output = f"{store}/out"
    first = begun(place, output)
    with pytest.raises(BadCall, match=f"another batch is writing into {output} .process {os.getpid()} on "):
        batch.run(place.workflow, place.points(3), output=output, input=place.root / "input")
    list(first)
    assert_complete(output, 3)
    assert made(place, place.points(3), output) == []


def test_a_batch_that_was_killed_leaves_a_lock_that_is_taken(place, store, quick_lock, monkeypatch, caplog):
    output = f"{store}/out"
    with monkeypatch.context() as killed:
        killed.setattr(lock.StoreLock, "_beat", lambda self: None)
        killed.setattr(lock.StoreLock, "release", lambda self: None)
        begun(place, output).close()
    begin = time.monotonic()
    assert [record["key"] for record in made(place, place.points(3), output)] == ["p1", "p2"]
    assert time.monotonic() - begin >= lock.SILENCE
    assert f"process {os.getpid()} on " in caplog.text and "waiting 1 s for a sign of it" in caplog.text
    assert_complete(output, 3)


def test_a_batch_that_was_silent_for_too_long_ends(place, store, quick_lock):
    """Its machine slept, and another batch began meanwhile."""
    output = f"{store}/out"
    first = batch.run(place.workflow, place.points(3), output=output, input=place.root / "input")
    rows, deadline = iter(first), time.monotonic() + 20
    next(rows)
    while not first.output._lock.lost and time.monotonic() < deadline:  # each gives signs, and one sees the other's
        Url(f"{output}/.sana-batch/lock.json").write(b'{"id": "of another"}')
        time.sleep(lock.BEAT)
    with pytest.raises(Stopped, match=f"another batch has begun to write into {output}"):
        next(rows)
    assert len(Url(f"{output}/.sana-batch/rows").files()) == 1
    assert Url(f"{output}/.sana-batch/lock.json").read() == b'{"id": "of another"}', "it is not ours to remove"


@pytest.mark.parametrize("error", [OSError(ENOSYS, "no conditional writes"), TypeError("mode"), NotImplementedError()])
def test_a_store_without_exclusive_writes(store, monkeypatch, error):
    url = Url(f"{store}/lock.json")
    usual = type(url._fs).pipe_file

    def pipe_file(self, path, data, **options):
        if options:
            raise error
        return usual(self, path, data)

    monkeypatch.setattr(url._fs, "pipe_file", partial(pipe_file, url._fs))
    assert url.create(b"1") and not url.create(b"2") and url.read() == b"1"


def test_of_two_that_create_a_file_one_does(store):
    url = Url(f"{store}/lock.json")
    with ThreadPoolExecutor(8) as pool:
        made_it = list(pool.map(lambda n: url.create(str(n).encode()), range(8)))
    assert sum(made_it) == 1 and url.read() == str(made_it.index(True)).encode()


def test_a_store_that_fails_ends_the_batch_and_no_row_is_lost(place, store, monkeypatch):
    output, usual = f"{store}/out", Url.write

    def write(self, data):
        if "/rows/" in self.path and len(Url(f"{output}/.sana-batch/rows").files()) == 3:
            raise OSError("the network is down")
        usual(self, data)

    with monkeypatch.context() as broken:
        broken.setattr(Url, "write", write)
        with pytest.raises(Stopped, match="the results cannot be written: the network is down"):
            made(place, place.points(6), output)
    assert len(made(place, place.points(6), output)) == 3
    assert_complete(output, 6)


def test_wrong_rows_of_a_table_at_a_url(place, store):
    Url(f"{store}/t.csv").write(b"key,2.x\na,left\n")
    with pytest.raises(BadCall, match=r"t.csv, line 2: 2.x is 'left'; give a whole number"):
        made(place, f"{store}/t.csv", f"{store}/out")
    assert not Url(f"{store}/out").files(deep=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere://bucket/t.csv", "nowhere"),
        ("memory://bucket/absent.csv", "cannot read memory://bucket/absent.csv"),
        ("memory://bucket/t.xlsx", "its name must end with .csv"),
    ],
)
def test_wrong_urls(place, capsys, name, reason):
    assert cli.main(["batch", *map(str, [place.workflow, name, "--output", place.output])]) == 2
    assert reason in capsys.readouterr().err


def test_a_store_that_cannot_be_reached(place, monkeypatch, capsys):
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install sana-nodes[s3]")
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    arguments = place.arguments(place.points(1))
    arguments[arguments.index("--output") + 1] = "s3://bucket/out"
    assert cli.main(["batch", *arguments]) == 2
    s3fs.S3FileSystem.clear_instance_cache()
    assert "the output s3://bucket/out cannot be used" in capsys.readouterr().err


def test_the_package_of_a_protocol_is_named(monkeypatch):
    def refuse(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(BadCall, match=r"install sana-nodes\[s3\] for s3://"):
        Url("s3://bucket/t.csv")


def test_files_of_this_machine(tmp_path):
    assert local_or_url(f"file://{tmp_path}") == tmp_path
    assert local_or_url("C:\\tables\\t.csv").name and local_or_url(tmp_path) == tmp_path
