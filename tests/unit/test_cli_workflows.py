"""Workflow files and settings that a person or a program may give: each ends in a sentence and the right code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import image_files
import tiny
from PIL import Image
from sana_nodes import cli, host

SPRINT = tiny.REPOSITORY / "example_workflows" / "api" / "sana_sprint_text_to_image.json"
GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "rgba.png"}, "_meta": {"title": "Load Image"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "kept"}},
}


@pytest.fixture(autouse=True)
def _forget_host():
    yield
    host._current = None


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """``sana-nodes run`` of a graph or of a file's bytes on the embedded host: exit code, standard output and error."""
    monkeypatch.setenv("COMFYUI_PATH", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    image_files.MAKERS["rgba.png"](tmp_path / "input" / "rgba.png")

    def call(workflow, *arguments):
        data = workflow if isinstance(workflow, bytes) else json.dumps(workflow).encode()
        (tmp_path / "workflow.json").write_bytes(data)
        code = cli.main(["run", "workflow.json", "--host", "embedded", *arguments])
        return code, *capsys.readouterr()

    return call


def sprint(**changes) -> dict:
    """The Sprint example on models that are not there; ``changes``: node id to inputs."""
    graph = json.loads(SPRINT.read_text(encoding="utf-8"))
    for node_id, inputs in changes.items():
        graph[node_id.strip("n")]["inputs"].update(inputs)
    return graph


def changed(text: str, by: str, graph: dict = GRAPH) -> bytes:
    data = json.dumps(graph)
    assert data.count(text) == 1
    return data.replace(text, by).encode()


@pytest.mark.parametrize(
    "data,expected",
    [
        (b"[" * 100_000, "it is nested too deep"),
        (b"[" * 100_000 + b"]" * 100_000, "it is nested too deep"),
        (b'{"1":' * 100_000, "it is nested too deep"),
        (changed('"kept"', "[" * 400 + "]" * 400), "node 2: its values are nested more than 100 deep"),
        (changed('"kept"', "NaN"), "NaN is not a number in JSON"),
        (changed('"kept"', "-Infinity"), "-Infinity is not a number in JSON"),
        (changed('"kept"', "7" * 5000), "a number in it has 5000 digits"),
        (changed('"images"', '"filename_prefix"'), "the key 'filename_prefix' occurs twice"),
        (changed('"2": ', '"1": '), "the key '1' occurs twice"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"", "is not JSON"),
        (b"null", "is not a workflow"),
        (b"5", "is not a workflow"),
        (b"{}", "has no nodes"),
        (b'{"prompt": {}}', "has no nodes"),
        (b'{"1": 5}', "node 1 is not an object"),
        (b'{"1": {}}', "node 1 has no class_type"),
        (b'{"1": {"class_type": ["SaveImage"], "inputs": {}}}', "node 1: class_type is not a text"),
        (b'{"1": {"class_type": null, "inputs": {}}}', "node 1: class_type is not a text"),
        (b'{"1": {"class_type": "SaveImage", "inputs": null}}', "node 1: inputs is not an object"),
        (b'{"1": {"class_type": "SaveImage", "inputs": [1]}}', "node 1: inputs is not an object"),
        (b'{"1": {"class_type": "SaveImage"}}', "node 1 (Save Image): images is missing"),
    ],
    ids=lambda value: value[:20].decode(errors="replace") if isinstance(value, bytes) else value[:30],
)
def test_unusable_files_end_with_2_and_a_sentence(run, data, expected):
    code, out, err = run(data)
    assert code == 2 and out == "" and expected in err
    assert all(line.startswith("sana-nodes: ") and len(line) < 700 for line in err.splitlines())


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"n1": {"pipeline": 5}}, "node 1 (Sana Load Pipeline): pipeline is 5; choose one of"),
        ({"n1": {"pipeline": None}}, "node 1 (Sana Load Pipeline): pipeline is None; choose one of"),
        ({"n4": {"seed": 10**400}}, "node 4 (Sana SCM Sample): seed is 1000"),
        ({"n4": {"max_timesteps": 5e-324, "steps": 1, "denoise": 0.5}}, "node 4 (Sana SCM Sample): "),
        ({"n4": {"model": ["4", 0]}}, "the workflow runs in a circle: 4 -> 4"),
    ],
)
def test_unusable_values_end_with_2_before_anything_runs(run, changes, expected):
    code, out, err = run(sprint(**changes))
    assert code == 2 and out == "" and expected in err
    assert all(line.startswith("sana-nodes: ") and len(line) < 700 for line in err.splitlines())


@pytest.mark.parametrize("meta", [None, 5, [], {"title": None}, {"title": ["x"]}, {}])
def test_meta_of_any_kind(run, meta):
    code, out, _ = run({**GRAPH, "1": {**GRAPH["1"], "_meta": meta}})
    assert code == 0 and out.strip().endswith("kept_00001_.png")
    code, _, err = run({**GRAPH, "1": {**GRAPH["1"], "_meta": meta}}, "--set", "absent.x=1")
    assert code == 2 and "no node has this id or title" in err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_byte_order_marks(run, encoding):
    graph = {**GRAPH, "2": {**GRAPH["2"], "inputs": {"images": ["1", 0], "filename_prefix": "füße"}}}
    code, out, _ = run(json.dumps(graph, ensure_ascii=False).encode(encoding))
    assert code == 0 and out.strip().endswith("füße_00001_.png")


def test_a_graph_inside_what_the_api_takes_and_a_node_called_prompt(run):
    assert run({"prompt": GRAPH, "client_id": "x"})[0] == 0
    named = {"prompt": GRAPH["1"], "2": {**GRAPH["2"], "inputs": {**GRAPH["2"]["inputs"], "images": ["prompt", 0]}}}
    assert run(named)[0] == 0


def tags(path: str) -> dict:
    with Image.open(path) as image:
        return {name: json.loads(text) for name, text in image.text.items()}


@pytest.mark.parametrize("text", ["1984", "1e3", "true", '["1", 0]'])
def test_settings_keep_the_type_of_the_widget(run, text):
    """1984 and 1e3 in a text stay texts, 3.0 in a number is one, False is a BOOLEAN; whatever the file has there."""
    graph = json.loads(json.dumps(GRAPH))
    graph["3"] = {"class_type": "SanaSelectFrames", "inputs": {"images": ["1", 0], "start": 0, "count": 0, "stride": 1}}
    graph["4"] = {
        "class_type": "ImageCompositeMasked",
        "inputs": {"destination": ["1", 0], "source": ["3", 0], "x": 0, "y": 0, "resize_source": True},
    }
    graph["2"]["inputs"] = {"images": ["4", 0], "filename_prefix": 5}
    settings = [f"2.filename_prefix={text}", "3.count=1", "4.resize_source=False", '4.source=["1", 0]', "4.x=3.0"]
    code, out, err = run(graph, *[part for setting in settings for part in ("--set", setting)])
    assert code == 0, err
    assert Path(out.strip()).name == f"{text}_00001_.png"
    saved = {key: node["inputs"] for key, node in tags(out.strip())["prompt"].items()}
    assert saved["2"]["filename_prefix"] == text and saved["4"]["resize_source"] is False
    assert saved["4"]["source"] == ["1", 0] and saved["4"]["x"] == 3 and type(saved["4"]["x"]) is int


@pytest.mark.parametrize(
    "setting,expected",
    [
        ("4.resize_source=perhaps", "give true or false"),
        ("4.breadth=3", "node has no input 'breadth'; its inputs are destination, source"),
        ("4.x=" + "9" * 5000, "give a whole number"),
        *[("4.x=" + "[" * n + "]" * n, "the value is nested more than 100 deep") for n in (200, 3000, 60_000)],
        ("4.x=NaN", "x is nan; give a whole number"),
        ("4.mask=5", "mask must come from another node's MASK output, not be 5"),
    ],
)
def test_unusable_settings(run, setting, expected):
    graph = {**GRAPH, "2": {**GRAPH["2"], "inputs": {"images": ["4", 0], "filename_prefix": "x"}}}
    links = {"destination": ["1", 0], "source": ["1", 0]}
    graph["4"] = {"class_type": "ImageCompositeMasked", "inputs": {**links, "x": 0, "y": 0, "resize_source": True}}
    code, out, err = run(graph, "--set", setting)
    assert code == 2 and out == "" and expected in err and len(err) < 1000


def test_without_metadata(run):
    code, out, _ = run(GRAPH)
    assert code == 0 and tags(out.strip())["prompt"]["1"]["inputs"] == {"image": "rgba.png"}
    frames = {"class_type": "SanaSaveFrames", "inputs": {"images": ["1", 0], "format": "png", "filename_prefix": "f"}}
    code, out, _ = run({**GRAPH, "3": frames}, "--no-metadata")
    assert code == 0 and len(out.splitlines()) == 2
    assert [tags(path) for path in out.splitlines()] == [{}, {}]


def test_a_preview_alone_says_where_it_is(run, tmp_path):
    graph = {"1": GRAPH["1"], "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    code, out, _ = run(graph)
    path = Path(out.strip())
    assert code == 0 and path.parent == tmp_path / "temp" and Image.open(path).size == (56, 40)
    assert not (tmp_path / "output").exists()
    code, out, _ = run(graph, "--json")
    found = json.loads(out)
    assert found["saved"] == [] and len(found["previews"]) == 1


def test_prefixes_are_filled_in(run, tmp_path):
    graph = json.loads(json.dumps(GRAPH))
    graph["2"]["inputs"]["filename_prefix"] = "%width%x%height%/%batch_num%"
    code, out, _ = run(graph)
    assert code == 0 and Path(out.strip()) == tmp_path / "output" / "56x40" / "0_00001_.png"


def test_an_unknown_input_in_the_file_is_noted(run):
    graph = json.loads(json.dumps(GRAPH))
    graph["2"]["inputs"]["colour"] = "red"
    code, out, err = run(graph)
    assert code == 0 and "note: node 2 (Save Image): there is no input 'colour'" in err


def test_an_output_that_cannot_be_written_is_told_before_anything_runs(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    for target in ("taken", "taken/below"):
        code, out, err = run(GRAPH, "--output", target)
        assert code == 2 and out == "" and err.count("\n") == 1 and "node 1" not in err
        assert "the output folder cannot be used: " in err and "taken" in err
    (tmp_path / "output").write_text("a file")
    code, _, err = run(GRAPH)
    assert code == 2 and "the output folder cannot be used: " in err and str(tmp_path / "output") in err


def test_a_missing_image_is_told_before_anything_runs_and_makes_no_folder(run, tmp_path):
    graph = json.loads(json.dumps(GRAPH))
    graph["1"]["inputs"]["image"] = "none.png"
    before = sorted(tmp_path.iterdir())
    code, out, err = run(graph)
    assert code == 2 and err.count("\n") == 1 and "node 1 (Load Image): image: there is no file 'none.png'" in err
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "workflow.json"] == before
