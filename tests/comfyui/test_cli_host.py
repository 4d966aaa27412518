"""``sana-nodes run --host comfyui``: exit codes, what is told while it runs, and what is left out of the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import image_files
import platforms
import tiny
from PIL import Image

pytestmark = pytest.mark.comfyui


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


LOADED = {"1": node("LoadImage", image="rgba.png")}
SAVED = {**LOADED, "2": node("SaveImage", images=["1", 0], filename_prefix="kept")}


@pytest.fixture
def command(tmp_path):
    """The command line for a graph, in a folder with an image as its input."""
    (tmp_path / "input").mkdir()
    image_files.MAKERS["rgba.png"](tmp_path / "input" / "rgba.png")

    def build(graph: dict, *arguments: str) -> list[str]:
        (tmp_path / "workflow.json").write_text(json.dumps(graph))
        places = ["--input", str(tmp_path / "input"), "--output", str(tmp_path / "output")]
        run = [sys.executable, "-m", "sana_nodes", "run", str(tmp_path / "workflow.json"), "--host", "comfyui"]
        return [*run, *places, *arguments]

    return build


def started(command: list[str]):
    environment = {**os.environ, "COMFYUI_PATH": str(tiny.COMFYUI)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if sys.platform != "win32":
        streams["preexec_fn"] = platforms.heed_interrupts
    return subprocess.Popen(command, env=environment, **streams)


def ended(command: list[str]) -> tuple[int, str, str]:
    process = started(command)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_one_wrong_output_of_two_runs_nothing(command, tmp_path):
    """ComfyUI itself would save the valid one and drop the other; one wrong input is one message."""
    graph = {**SAVED, "3": node("SanaSaveFrames", images=["1", 0], format="bmp", filename_prefix="x")}
    graph["4"] = node("SanaEmptyLatent", width=100, height=100, batch_size=1)
    graph["5"] = node("VAEDecode", samples=["4", 0], vae=["6", 0])
    graph["6"] = node("SanaLoadVAE", vae_name="none", weight_dtype="default")
    graph["7"] = node("PreviewImage", images=["5", 0])
    code, out, err = ended(command(graph))
    told = sorted(line for line in err.splitlines() if line.startswith("sana-nodes: "))
    assert code == 2 and out == "" and "Traceback" not in err
    assert len(told) == 3 and told[0].startswith("sana-nodes: node 3 (Sana Save Frames): format: 'bmp' not in")
    assert told[1].startswith("sana-nodes: node 4 (Sana Empty Latent): width is 100, not a multiple of 32")
    assert told[2].startswith("sana-nodes: node 6 (Sana Load VAE): ") and "none" in told[2]
    assert not (tmp_path / "output").exists()


def test_nodes_are_told_as_they_start_and_metadata_can_be_left_out(command, tmp_path):
    graph = {**SAVED, "3": node("SanaSelectFrames", images=["1", 0], start=0, count=0, stride=1)}
    graph["4"] = node("SanaSaveFrames", images=["3", 0], format="png", filename_prefix="frames")
    graph["5"] = node("PreviewImage", images=["3", 0])
    graph["9"] = node("SanaSCMSampler")
    code, out, err = ended(command(graph, "--no-metadata", "--set", "2.filename_prefix=1984"))
    assert code == 0, err[-3000:]
    told = [line for line in err.splitlines() if line.startswith("node ")]
    assert told[0] == "node 1 (Load Image)" and len(told) == 5 and "node 9 (Sana SCM Sampler)" not in told
    assert {"node 2 (Save Image)", "node 3 (Sana Select Frames)", "node 5 (Preview Image)"} < set(told)
    saved, frames, preview = map(Path, sorted(out.splitlines(), key=lambda path: ("temp" in path, path)))
    assert saved == tmp_path / "output" / "1984_00001_.png" and frames.name == "frames_00001_.png"
    assert preview.name.startswith("ComfyUI_temp_") and preview.is_file()
    for path in (saved, frames):
        with Image.open(path) as image:
            assert image.size == (56, 40) and image.text == {}


def test_a_chain_that_comfyui_cannot_check_ends_with_2(command):
    graph = dict(LOADED)
    for number in range(2, 2000):
        graph[str(number)] = node("SanaSelectFrames", images=[str(number - 1), 0], start=0, count=0, stride=1)
    graph["2000"] = node("SaveImage", images=["1999", 0], filename_prefix="x")
    code, out, err = ended(command(graph))
    told = [line for line in err.splitlines() if line.startswith("sana-nodes: ")]
    assert code == 2 and out == "" and told and "Traceback" not in err and all(len(line) < 600 for line in told)


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_ends_with_130(command):
    graph = dict(LOADED)
    for number in range(2, 3000):
        graph[str(number)] = node("SaveImage", images=["1", 0], filename_prefix=f"n{number}")
    process = started(command(graph))
    for line in process.stderr:
        if line.startswith("node "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and out == "", err[-2000:]
    assert err.splitlines()[-1] == "sana-nodes: interrupted" and "Traceback" not in err
