"""Tables of ``sana-nodes batch`` that are wrong: said in words with the line, exit 2, and nothing is run."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from sana_nodes import batch, cli
from sana_nodes.batch import tables
from sana_nodes.cli.calls import BadCall

pytestmark = pytest.mark.usefixtures("no_host")


GOOD = "key,2.x,2.y\na,1,2\nb,3,4\n"
WRONG = {
    "empty": (b"", "has no header"),
    "header alone": (b"key,2.x\n", "has no rows"),
    "blank lines alone": (b"\n\n\n", "has no header"),
    "unknown node": (b"key,9.x\na,1\n", "line 2: the column '9.x': no node has this id or title"),
    "unknown input": (b"key,2.breadth\na,1\n", "has no input 'breadth'; its inputs are destination"),
    "no input": (b"key,prompt\na,1\n", "--column prompt=NODE.INPUT, or leave it out with --column prompt="),
    "link": (b"key,2.source\na,1\n", "source of node 2 comes from another node"),
    "unused node": (b"key,8.width\na,1\n", "a column sets node 8, which no output of the workflow needs"),
    "same input twice": (b"2.x,Image Composite Masked.x\n1,2\n", "set the same input"),
    "same name twice": (b"2.x,2.x\n1,2\n", "two columns are called '2.x'"),
    "no name": (b"2.x,\n1,2\n", "column 2 has no name"),
    "not a number": (b"key,2.x\na,1\nb,left\n", "line 3: 2.x is 'left'; give a whole number"),
    "half": (b"key,2.x\na,1.5\n", "line 2: 2.x is '1.5'; give a whole number"),
    "not finite": (b"key,2.x\na,NaN\n", "line 2: 2.x is 'nan'; give a whole number"),
    "outside": (b"key,2.x\na,1\nb,-5\n", "line 3: node 2 (Image Composite Masked): x is -5; give a number from 0"),
    "not a boolean": (b"2.resize_source\nperhaps\n", "line 2: 2.resize_source=perhaps: give true or false"),
    "no file": (b"1.image\nabsent.png\n", "line 2: node 1 (Load Image): image: there is no file 'absent.png'"),
    "outside file": (b"1.image\n../secret.png\n", "leads out of"),
    "fewer cells": (b"key,2.x\na,1\nb\n", "line 3: it has 1 cells, and the header names 2 columns"),
    "more cells": (b"key,2.x\na,1,2\n", "line 2: it has 3 cells"),
    "duplicate keys": (b"key,2.x\na,1\nb,2\na,3\n", "line 4: the key 'a' is also that of line 2"),
    "keys in capitals": (b"key,2.x\na,1\nA,2\n", "line 3: the key 'A' is also that of line 2 ('a'"),
    "empty key": (b"key,2.x\n,1\n", "line 2: the key '' cannot be a file's name"),
    "key with a folder": (b"key,2.x\na/b,1\n", "line 2: the key 'a/b' has '/'"),
    "long key": (b"key,2.x\n" + b"k" * 200 + b",1\n", "has 200 bytes; at most 150"),
    "reserved key": (b"key,2.x\ncon,1\n", "the key 'con' cannot be a file's name"),
    "a megabyte": (b"key,3.filename_prefix\na," + b"x" * 1_000_000 + b"\n", "line 2: a cell has more than 131,072"),
    "more than a megabyte": (b"key,2.x\na," + b"x" * 2_000_000 + b"\n", "line 2: the line has more than 1,048,576 b"),
    "long cell": (b"key,3.filename_prefix\na," + b"x" * 110_000 + b"\n", "has 110,000 characters; at most 100,000"),
    "open quote": (b'key,2.x\na,1\nb,"2\nc,3\n', "line 3: a quote that is opened here is not closed"),
    "mixed ends": (b"key,2.x\na,1\r\nb,2\n", "line 2: it ends with CRLF and the lines before with LF"),
    "CR alone": (b"key,2.x\ra,1\rb,2\r", "a CR stands alone"),
    "mark": (b"\xef\xbb\xbfkey,2.x\na,1\n", "begins with a byte order mark (UTF-8); save it as UTF-8 without one"),
    "UTF-16": ("key,2.x\na,1\n".encode("utf-16"), "begins with a byte order mark (UTF-16)"),
    "Latin-1": (b"key,2.x\n\xe9,1\n", "line 2: it is not UTF-8 (byte 1)"),
    "zero byte": (b"key,2.x\na\0,1\n", "line 2: a zero byte"),
}


@pytest.mark.parametrize(("data", "reason"), WRONG.values(), ids=WRONG)
def test_wrong_csv(place, capsys, data, reason):
    assert_refused(place, capsys, place.table("t.csv", data), reason)


def assert_refused(place, capsys, table, reason, *arguments):
    code = cli.main(["batch", *place.arguments(table), *arguments])
    out, err = capsys.readouterr()
    assert code == 2 and out == "", err
    assert reason in err
    assert not (place.root / "output").exists(), "nothing is made before a table is whole"


WRONG_LINES = {
    "not JSON": ('{"2.x": 1}\n{"2.x": 1\n', "line 2: it is not JSON"),
    "a list": ("[1]\n", "line 1: it is not a JSON object"),
    "a key twice": ('{"2.x": 1, "2.x": 2}\n', "line 1: it is not JSON: the key '2.x' occurs twice"),
    "NaN": ('{"2.x": NaN}\n', "NaN is not a number in JSON"),
    "a text": ('{"2.x": "1"}\n', "line 1: 2.x is '1'; give a whole number"),
    "true": ('{"2.x": true}\n', "line 1: 2.x is 'True'; give a whole number"),
    "1 for true": ('{"2.resize_source": 1}\n', "2.resize_source is '1'; give true or false"),
    "number for a text": ('{"3.filename_prefix": 1}\n', "3.filename_prefix is '1'; give a text"),
    "a link": ('{"2.x": ["1", 0]}\n', "line 1: 2.x: a list is not a value"),
    "an unknown column later": ('{"2.x": 1}\n{"2.z": 1}\n', "line 2: the column '2.z'"),
    "a key of another type": ('{"key": 1.5}\n', "line 1: the key in column 'key' is '1.5'"),
    "no key": ('{"key": "a"}\n{"key": null}\n', "line 2: the key in column 'key' is 'None'"),
    "a mark": ('\ufeff{"2.x": 1}\n', "begins with a byte order mark"),
    "nested deep": ('{"2.x": ' + "[" * 200_000 + "\n", "line 1: it is not JSON"),
}


@pytest.mark.parametrize(("text", "reason"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_wrong_jsonl(place, capsys, text, reason):
    assert_refused(place, capsys, place.table("t.jsonl", text.encode()), reason)


@pytest.mark.parametrize("cut", [0, 3, 40, 0.5, -20, -4])
def test_wrong_parquet(place, capsys, cut):
    """Cut at its head, in a page and in its footer; -4: whole but for its magic number."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    import pyarrow

    whole = place.root / "whole.parquet"
    parquet.write_table(pyarrow.table({"2.x": list(range(1000))}), whole)
    data = whole.read_bytes()
    table = place.table("t.parquet", data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    assert_refused(place, capsys, table, "is not a whole parquet file")


def test_parquet_without_pyarrow_names_the_extra(place, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert_refused(place, capsys, place.table("t.parquet", b"x"), "pip install sana-nodes[tables]")


def test_every_wrong_row_is_named_up_to_twenty(place, capsys):
    table = place.table("t.csv", b"2.x\n" + b"left\n" * 30)
    assert_refused(place, capsys, table, "t.csv, line 21: 2.x is 'left'")
    with pytest.raises(BadCall, match="reading ended there") as raised:
        batch.run(place.workflow, table, **place.folders)
    assert len(str(raised.value).splitlines()) == 21


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--column", "other=2.x"], "has no column 'other'; its columns are key, 2.x, 2.y"),
        (["--key", "name"], "line 2: it has no column 'name'"),
        (["--column", "2.x"], "is not of the form NAME=NODE.INPUT"),
        (["--limit", "-1"], "limit is -1; give 0 or more"),
        (["--set", "9.x=1"], "--set 9: no node has this id or title"),
    ],
)
def test_wrong_calls(place, capsys, arguments, reason):
    try:
        assert_refused(place, capsys, place.table("t.csv", GOOD.encode()), reason, *arguments)
    except SystemExit as ended:
        assert ended.code == 2


def test_files_that_are_no_tables(place, capsys):
    assert_refused(place, capsys, place.table("t.xlsx", b"x"), "its name must end with .csv, .tsv, .jsonl")
    assert_refused(place, capsys, place.root / "absent.csv", "cannot read")
    assert_refused(place, capsys, place.root / "input", "its name must end with")


def test_a_workflow_that_cannot_run_is_said_once(place, capsys):
    place.graph["3"]["inputs"]["images"] = ["7", 0]
    place.write_workflow()
    assert_refused(place, capsys, place.table("t.csv", GOOD.encode()), "sana-nodes: node 3 (Save Image): images comes")


def cells(path, **options):
    return [dict(row.cells) for row in tables.open_table(path)]


def test_the_same_rows_in_every_format(place):
    rows = [{"key": "a", "2.x": "1"}, {"key": 'b, "q"\nline', "2.x": "2"}]
    csv = place.table("t.csv", b'key,2.x\r\na,1\r\n\r\n"b, ""q""\nline",2\r\n')
    assert cells(csv) == rows
    assert cells(place.table("t.tsv", b'key\t2.x\na\t1\n"b, ""q""\nline"\t2')) == rows
    assert cells(place.table("t.jsonl", "\n\n".join(map(json.dumps, rows)).encode())) == rows
    assert [row.line for row in tables.open_table(csv)] == [2, 4]


def test_values_of_numpy_are_those_of_python(place):
    """As pandas and Ray Data give them; what is no single value is named."""
    row = {"key": np.int64(7), "2.x": np.int32(3), "2.y": np.float32(4), "2.resize_source": np.bool_(False)}
    given = {"output": place.output, "input": place.root / "input"}
    (record,) = batch.run(place.workflow, [{**row, "1.image": np.str_("back.png")}], **given)
    assert record["key"] == "7" and record["error"] is None
    plain = {"key": 7, "2.x": 3, "2.y": 4, "2.resize_source": False, "1.image": "back.png"}
    assert list(batch.run(place.workflow, [plain], **given)) == [], "it is the same row"
    for wrong in (np.float32("nan"), np.array([1, 2])):
        with pytest.raises(BadCall, match="table, row 1: 2.x"):
            batch.run(place.workflow, [{"2.x": wrong}], **given)


def test_a_table_is_streamed(tmp_path):
    """Ten times the rows take the same memory."""

    def peak(count):
        path = tmp_path / "t.csv"
        path.write_text("a,b\n" + "some text,1\n" * count)
        tracemalloc.start()
        try:
            assert sum(1 for _ in tables.open_table(path)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(20_000) < peak(2_000) + 10_000, "threads of earlier tests may end meanwhile"


def test_a_nodes_own_check_sees_every_row(place, capsys):
    """The first row is right: what a class has nothing against in it, it may have in another one."""
    place.graph["3"] = {
        "class_type": "SanaSaveFrames",
        "inputs": {"images": ["2", 0], "format": "png", "filename_prefix": "frames/Sana"},
    }
    place.write_workflow()
    table = place.table("t.csv", b"key,3.filename_prefix\na,frames/a\nb,../b\n")
    assert_refused(place, capsys, table, "line 3: ")
