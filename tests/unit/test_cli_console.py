"""Pipes that close, consoles without our letters, and Ctrl-C: the right exit code, and no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import image_files
import platforms
from sana_nodes.cli import console

MODELS = Path(__file__).resolve().parents[2] / "demo" / "models"
POSIX = pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal, or uses its devices")


@pytest.fixture
def workflow(tmp_path) -> Path:
    """A workflow that saves twenty images under a name that ASCII does not have."""
    (tmp_path / "input").mkdir()
    image_files.MAKERS["rgb.png"](tmp_path / "input" / "größe.png")
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "größe.png"}}}
    for number in range(20):
        inputs = {"images": ["1", 0], "filename_prefix": f"füße{number}"}
        graph[f"{number + 2}"] = {"class_type": "SaveImage", "inputs": inputs}
    (tmp_path / "workflow.json").write_text(json.dumps(graph), encoding="utf-8")
    return tmp_path / "workflow.json"


def command(workflow: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sana_nodes", "run", str(workflow), "--host", "embedded", *arguments]


def environment(**changes: str) -> dict:
    return {**os.environ, "COMFYUI_PATH": "", **changes}


def test_a_closed_pipe_stops_nothing(workflow, tmp_path):
    """Like ``| head -1`` and ``2>&1 | head -1``: the reader is gone before the first line."""
    for closed in ("stdout", "stderr"):
        reader, writer = os.pipe()
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
        process = subprocess.Popen(command(workflow), cwd=tmp_path, env=environment(), text=True, **streams)
        os.close(writer)
        os.close(reader)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        if closed == "stdout":
            assert "Error" not in err and "Traceback" not in err and "sana-nodes:" not in err
        else:
            assert len(out.splitlines()) == 20
    assert len(list((tmp_path / "output").iterdir())) == 40


def test_an_unusable_call_into_a_closed_pipe_still_ends_with_2(workflow, tmp_path):
    reader, writer = os.pipe()
    arguments = command(workflow, "--set", "99.x=1")
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    os.close(reader)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and out == b""


def test_an_ascii_console(workflow, tmp_path):
    settings = environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    done = subprocess.run(command(workflow), cwd=tmp_path, env=settings, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert rb"f\xfc\xdfe0_00001_.png" in done.stdout and (tmp_path / "output" / "füße0_00001_.png").is_file()
    wrong = command(workflow, "--set", "1.image=ä\u4e2d.png")
    done = subprocess.run(wrong, cwd=tmp_path, env=settings, capture_output=True, timeout=120)
    assert done.returncode == 2 and rb"\xe4\u4e2d.png" in done.stderr and b"Traceback" not in done.stderr


@POSIX
def test_a_full_disk_behind_standard_output_is_told(workflow, tmp_path):
    with Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-m", "sana_nodes", "get"]
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("sana-nodes: cannot write to standard output: ")
    assert done.stderr.count("\n") == 1


@POSIX
def test_ctrl_c_before_anything_runs_ends_with_130_and_one_line(tmp_path):
    """A FIFO as the workflow file keeps the command waiting until it is interrupted."""
    fifo = tmp_path / "waits.json"
    os.mkfifo(fifo)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command(fifo), cwd=tmp_path, env=environment(), preexec_fn=platforms.heed_interrupts, **streams
    )
    with fifo.open("w"):  # opens once the command reads
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and err == "sana-nodes: interrupted\n"


@POSIX
def test_ctrl_c_in_a_run_ends_with_130_and_leaves_no_half_file(workflow, tmp_path):
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    for number in range(22, 3000):
        inputs = {"images": ["1", 0], "filename_prefix": f"more{number}"}
        graph[f"{number}"] = {"class_type": "SaveImage", "inputs": inputs}
    workflow.write_text(json.dumps(graph))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command(workflow), cwd=tmp_path, env=environment(), preexec_fn=platforms.heed_interrupts, **streams
    )
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first == "node 1 (Load Image)\n" and process.returncode == 130 and out == ""
    lines = err.splitlines()
    assert lines[-1] == "sana-nodes: interrupted" and all(line.startswith("node ") for line in lines[:-1])
    assert {file.suffix for file in (tmp_path / "output").glob("*")} <= {".png"}


def test_what_could_steer_a_terminal_is_escaped(capsys):
    console.tell("a \x1b[31mred\x07 name\nand a second line: ä")
    assert capsys.readouterr().err == "sana-nodes: a \\x1b[31mred\\x07 name\nsana-nodes: and a second line: ä\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["get"], ["models", "--models", str(MODELS)]])
def test_help_and_the_list_of_models_need_no_torch(arguments, tmp_path):
    code = "import sys; from sana_nodes.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "False" and done.stdout and "unusable" not in done.stdout
