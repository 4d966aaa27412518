"""The command line: what it prints, what it saves and the codes it ends with."""

from __future__ import annotations

import json
import subprocess
import sys

import drawing
import numpy as np
import pytest
import tiny
from PIL import Image
from sana_nodes import cli, host
from sana_nodes.model_loaders.files import folders

WORKFLOW = tiny.REPOSITORY / "example_workflows" / "api" / "sana_sprint_text_to_image.json"
SMALL = ["--set", "1.pipeline=tiny", "--set", "3.width=64", "--set", "Sana Empty Latent.height=96"]


@pytest.fixture(autouse=True)
def _forget_host():
    yield
    host._current = None


@pytest.fixture
def run(home, reference, tmp_path, capsys, monkeypatch):
    """Run ``sana-nodes run`` on the embedded host; returns exit code, standard output and error."""
    monkeypatch.setenv("COMFYUI_PATH", "")

    def call(workflow, *arguments):
        if not isinstance(workflow, (str, type(WORKFLOW))):
            (tmp_path / "workflow.json").write_text(json.dumps(workflow))
            workflow = tmp_path / "workflow.json"
        places = ["--models", str(home / "models"), "--output", str(tmp_path / "output")]
        code = cli.main(["run", str(workflow), *places, *arguments])
        return code, *capsys.readouterr()

    return call


def graph(**changes):
    """The example workflow on the tiny model; ``changes``: node id to inputs."""
    nodes = json.loads(WORKFLOW.read_text())
    nodes["1"]["inputs"]["pipeline"] = "tiny"
    nodes["3"]["inputs"].update(width=64, height=64)
    for node_id, inputs in changes.items():
        nodes[node_id.strip("n")]["inputs"].update(inputs)
    return nodes


def test_run_saves_what_it_prints(run):
    code, out, err = run(WORKFLOW, "--host", "embedded", *SMALL)
    assert code == 0
    with Image.open(out.strip()) as picture:
        assert picture.size == (64, 96)
        assert json.loads(picture.text["prompt"])["3"]["inputs"]["height"] == 96
    assert "node 4 (Sana SCM Sample)" in err


def test_json_is_one_object(run):
    code, out, _ = run(WORKFLOW, "--json", *SMALL)
    assert code == 0
    saved = json.loads(out)["saved"]
    assert len(saved) == 1 and Image.open(saved[0]).size == (64, 96)


def test_second_run_numbers_on(run):
    first, second = (run(WORKFLOW, *SMALL)[1].strip() for _ in range(2))
    assert first.endswith("_00001_.png") and second.endswith("_00002_.png")


def test_set_by_title_keeps_texts_texts(run):
    code, out, _ = run(WORKFLOW, *SMALL, "--set", "Sana Encode Prompt.text=1 = 1.5", "--json")
    with Image.open(json.loads(out)["saved"][0]) as picture:
        assert json.loads(picture.text["prompt"])["2"]["inputs"]["text"] == "1 = 1.5"


@pytest.mark.parametrize(
    "setting,said",
    [
        ("9.width=3", "no node has this id or title"),
        ("width=3", "NODE.INPUT=VALUE"),
        ("3.breadth=3", "no input 'breadth'"),
        ("3.width=wide", "width is 'wide'; give a whole number"),
        ("3.width=100000", "from 32 to 16384"),
        ("4.steps=0", "steps is 0; give a number from 1 to 1000"),
        ("4.denoise=NaN", "from 0.0 to 1.0"),
        ("4.add_noise=perhaps", "choose one of enable, disable"),
        ("1.pipeline=absent", "no pipeline folder called 'absent'; looked in"),
        ("1.pipeline=../tiny", "is not the name"),
        ("2.text=5", None),
    ],
)
def test_unusable_settings_end_with_2(run, setting, said):
    code, out, err = run(WORKFLOW, *SMALL, "--set", setting)
    if said is None:
        assert code == 0
        return
    assert code == 2 and said in err and out == ""


def test_unknown_node_and_missing_input(run):
    nodes = graph()
    nodes["7"] = {"class_type": "KSampler", "inputs": {}}
    code, _, err = run(nodes)
    assert code == 2 and "node 7 is a KSampler" in err and "--host comfyui" in err
    nodes = graph()
    del nodes["4"]["inputs"]["model"]
    code, _, err = run(nodes)
    assert code == 2 and "node 4 (Sana SCM Sample): model is missing; give it a value or connect" in err


def test_core_clip_text_encode_is_ours_with_defaults(run):
    nodes = graph()
    nodes["2"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": nodes["2"]["inputs"]["text"]}}

    def image(given):
        return np.asarray(Image.open(run(given)[1].strip()))

    core, other = image(nodes), image(graph(n2={"text": "another prompt", "guidance_scale": 9.0}))
    assert drawing.same_pixels(core, image(graph())) and not drawing.same_pixels(core, other)


def test_core_nodes_stay_in_their_folders(run):
    code, _, err = run(graph(n6={"filename_prefix": "../outside"}))
    assert code == 2 and "node 6 (Save Image)" in err and "leads out of" in err
    nodes = graph()
    nodes["30"] = {"class_type": "LoadImage", "inputs": {"image": "../secret.png"}}
    nodes["3"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["30", 0], "vae": ["1", 2]}}
    code, _, err = run(nodes)
    assert code == 2 and "node 30 (Load Image)" in err and "leads out of" in err


def test_wrong_links(run):
    code, _, err = run(graph(n4={"model": ["1", 2]}))
    assert code == 2 and "model takes MODEL, and output 2 of node 1 is VAE" in err
    code, _, err = run(graph(n4={"model": ["1", 5]}))
    assert code == 2 and "output 5 of node 1, which has 3" in err
    code, _, err = run(graph(n4={"model": ["8", 0]}))
    assert code == 2 and "comes from node 8, which is not in the workflow" in err


def test_cycle(run):
    nodes = graph()
    nodes["8"] = {"class_type": "SanaSCMSample", "inputs": {**nodes["4"]["inputs"], "latent_image": ["4", 0]}}
    nodes["4"]["inputs"]["latent_image"] = ["8", 0]
    code, _, err = run(nodes)
    assert code == 2 and "runs in a circle: 4 -> 8 -> 4" in err


def test_editor_format_and_other_files(run, tmp_path):
    code, _, err = run({"nodes": [], "links": []})
    assert code == 2 and "Export (API)" in err
    code, _, err = run([1, 2])
    assert code == 2 and "not a workflow" in err
    (tmp_path / "broken.json").write_text("{")
    code, _, err = run(tmp_path / "broken.json")
    assert code == 2 and "is not JSON" in err
    code, _, err = run(tmp_path / "absent.json")
    assert code == 2 and "cannot read" in err
    code, _, err = run({})
    assert code == 2 and "no nodes" in err


def test_bad_numbers_end_with_2_before_anything_runs(run):
    for changes, said in (
        ({"n3": {"width": 100}}, "node 3 (Sana Empty Latent): width is 100"),
        ({"n4": {"max_timesteps": 1.0}}, "node 4 (Sana SCM Sample): intermediate_timesteps is 1.3"),
    ):
        code, out, err = run(graph(**changes))
        assert code == 2 and said in err and out == "" and "(Sana Load Pipeline)\n" not in err


@pytest.fixture
def damaged(home, reference):
    """A pipeline folder whose transformer is cut short."""
    import shutil

    folder = home / "models" / "diffusers" / "damaged"
    shutil.copytree(home / "models" / "diffusers" / "tiny", folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    yield "damaged"
    shutil.rmtree(folder)


def test_node_failure_ends_with_1_and_names_the_node(run, damaged):
    code, out, err = run(graph(n1={"pipeline": damaged}))
    assert code == 1 and out == ""
    assert "node 1 (Sana Load Pipeline)" in err and "is not a complete safetensors file" in err


def test_wrong_comfyui_path(run, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    code, _, err = run(WORKFLOW)
    assert code == 2 and "holds no ComfyUI" in err
    monkeypatch.delenv("COMFYUI_PATH")
    code, _, err = run(WORKFLOW, "--host", "comfyui")
    assert code == 2 and "set COMFYUI_PATH" in err


def test_models_says_what_a_transformer_lacks_and_where_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", "")

    def said():
        assert cli.main(["models", "--models", str(tmp_path)]) == 0
        return [line.strip() for line in capsys.readouterr().out.splitlines() if "missing:" in line or "none:" in line]

    assert "sana-nodes get" in said()[0]
    tiny.transformer().save_pretrained(tmp_path / "diffusion_models" / "sprint")
    lacking = said()
    assert len(lacking) == 2 and "sana-nodes get gemma-2-2b-it" in lacking[0] and "get dc-ae-1.1" in lacking[1]
    tiny.autoencoder().save_pretrained(tmp_path / "vae" / "dc-ae")
    tiny.text_encoder().save_pretrained(tmp_path / "text_encoders" / "gemma")
    assert said() == []
    tiny.video_transformer().save_pretrained(tmp_path / "diffusion_models" / "video")
    assert len(said()) == 1 and "wan_2.1_vae.safetensors" in said()[0]


def test_models_lists_kinds_and_what_is_missing(home, reference, capsys, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", "")
    assert cli.main(["models", "--models", str(home / "models")]) == 0
    out = capsys.readouterr().out
    assert "diffusers/tiny: SanaSprintPipeline" in out
    assert "diffusion_models/tiny: SANA-Sprint transformer" in out
    assert "vae/tiny: DC-AE" in out and "text_encoders/tiny: Gemma-2 text encoder" in out
    assert "sana_sprint_text_to_image.json: can run" in out
    assert cli.main(["models", "--models", str(home)]) == 0
    out = capsys.readouterr().out
    assert "diffusers/sana-sprint-demo: SanaSprintPipeline" in out and "lacks models/diffusers" not in out
    monkeypatch.setattr(folders, "DEMO", home / "no demo weights")
    assert cli.main(["models", "--models", str(home)]) == 0
    out = capsys.readouterr().out
    assert "lacks models/diffusers/sana-sprint-demo" in out


@pytest.mark.comfyui
def test_run_in_comfyui_gives_the_same_pixels(run, home, reference, damaged, tmp_path, monkeypatch):
    """``--host comfyui`` starts the real ComfyUI, so it has a process of its own."""
    monkeypatch.setenv("COMFYUI_PATH", str(tiny.COMFYUI))
    code, out, _ = run(WORKFLOW, "--host", "embedded", *SMALL)
    assert code == 0
    places = ["--models", str(home / "models"), "--output", str(tmp_path / "theirs")]
    command = [sys.executable, "-m", "sana_nodes", "run", str(WORKFLOW), "--host", "comfyui", *places, *SMALL, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = json.loads(done.stdout)["saved"]
    assert str(tmp_path / "theirs") in saved[0]
    assert drawing.same_pixels(*(np.asarray(Image.open(path)) for path in (saved[0], out.strip())))
    refused = subprocess.run([*command, "--set", "4.steps=0"], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "steps" in refused.stderr
    failed = subprocess.run([*command, "--set", f"1.pipeline={damaged}"], capture_output=True, text=True, timeout=300)
    assert failed.returncode == 1
    assert "node 1 (Sana Load Pipeline)" in failed.stderr and "not a complete safetensors file" in failed.stderr
