"""No models at all: the demo weights are offered, lists say where files go, and a missing name says how to get it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import drawing
import graphs
import pytest
import tiny
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.host.embedded import graph as executor
from sana_nodes.host.embedded.folders import Folders
from sana_nodes.model_loaders import published
from sana_nodes.model_loaders.files import folders

LOADERS = {
    "SanaLoadTransformer": ("model_name", "transformer", "diffusion_models"),
    "SanaLoadTextEncoder": ("encoder_name", "text encoder", "text_encoders"),
    "SanaLoadVAE": ("vae_name", "VAE", "vae"),
}
"""Node: its input that names a file, what it is called, and the folder where one goes."""


@pytest.fixture
def fresh(tmp_path):
    """The embedded host over a folder with nothing in it."""
    from sana_nodes import host as hosts

    chosen = hosts.use("embedded")
    chosen.folders = Folders(models=[tmp_path / "models"], output=tmp_path / "output")
    yield chosen
    hosts._current = None


def choices(node: str, widget: str) -> list[str]:
    return NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"][widget][0]


def test_every_example_on_the_demo_weights_can_start_without_any_models(fresh):
    files = [f for f in graphs.EXAMPLES.glob("*.json") if "-demo" in f.read_text(encoding="utf-8")]
    assert len(files) > 4
    known = {**executor.CORE_NODES, **NODE_CLASS_MAPPINGS}
    for file in files:
        graph = json.loads(file.read_text(encoding="utf-8"))
        if all(node["class_type"] in known for node in graph.values()):
            executor.check(graph, NODE_CLASS_MAPPINGS, fresh.folders)


def test_the_first_example_generates_without_any_models(fresh):
    outcome = executor.run(json.loads(graphs.EXAMPLE.read_text()), NODE_CLASS_MAPPINGS, fresh.folders)
    assert [len(paths) for paths in outcome.saved.values()] == [1]


def test_demo_models_come_last(fresh, tmp_path):
    assert choices("SanaLoadPipeline", "pipeline") == ["sana-sprint-demo", "sana-video-demo", "sana-video-long-demo"]
    for name in ("zebra", "sana-video-480p"):
        folder = tmp_path / "models" / "diffusers" / name
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    assert choices("SanaLoadPipeline", "pipeline") == [
        "sana-video-480p",
        "zebra",
        "sana-sprint-demo",
        "sana-video-demo",
        "sana-video-long-demo",
    ]


def test_demo_models_are_the_last_root_of_both_hosts(host):
    assert host.roots("diffusers")[-1] == folders.DEMO / "diffusers"
    assert host.roots("loras")[-1] == folders.DEMO / "loras"
    assert folders.DEMO not in [root.parent for root in host.roots("vae")]


def test_a_person_s_own_copy_comes_before_the_demo_models(fresh, tmp_path):
    own = tmp_path / "models" / "diffusers" / "sana-sprint-demo"
    shutil.copytree(tiny.DEMO, own)
    assert folders.find_model(fresh.roots("diffusers"), "sana-sprint-demo", "pipeline folder") == own


@pytest.mark.parametrize("node", LOADERS)
def test_an_empty_list_says_what_to_put_where(fresh, tmp_path, node):
    widget, what, folder = LOADERS[node]
    [only] = choices(node, widget)
    assert only == f"none found: put a {what} in {tmp_path / 'models' / folder}"
    message = NODE_CLASS_MAPPINGS[node].VALIDATE_INPUTS(only)
    assert message.startswith(f"no {what} is there yet: put one in {tmp_path / 'models' / folder}")


@pytest.mark.parametrize("name", ["sana-video-480p", "SANA-Video_2B_480p_diffusers", "sana-video-480p/transformer"])
def test_a_missing_published_model_says_how_to_get_it(fresh, tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        drawing.call("SanaLoadPipeline", pipeline=name)
    message = str(caught.value)
    assert f"no pipeline folder called '{name}'" in message
    assert message.endswith("get sana-video-480p") and f"Put it in {tmp_path / 'models' / 'diffusers'}, or" in message


def test_a_name_that_is_not_published_says_where_it_goes(fresh, tmp_path):
    message = NODE_CLASS_MAPPINGS["SanaLoadVAE"].VALIDATE_INPUTS("mine.safetensors")
    assert message.endswith(f"Put it in {tmp_path / 'models' / 'vae'}")


def test_the_command_to_get_a_model_is_one_that_is_there(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert published.how_to_get("dc-ae-1.1") == f'"{sys.executable}" "{tiny.REPOSITORY}" get dc-ae-1.1'
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert published.how_to_get("dc-ae-1.1") == "sana-nodes get dc-ae-1.1"


def test_the_folder_is_a_program_without_being_installed(tmp_path):
    """``python custom_nodes/sana-nodes get`` works where nothing of the pack is on Python's path."""
    command = [sys.executable, str(tiny.REPOSITORY), "get"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "sana-sprint-0.6b" in done.stdout, done.stderr[-2000:]
