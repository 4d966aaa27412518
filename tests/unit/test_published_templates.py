"""Templates of published weights run as they are but for their sizes, over small random files of the same names."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import av
import gemma
import layouts
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.host.embedded import graph as executor
from sana_nodes.host.embedded.core_nodes import CORE_NODES

EXAMPLES = tiny.REPOSITORY / "example_workflows" / "api"
GRAPHS = {path.stem: json.loads(path.read_text()) for path in sorted(EXAMPLES.glob("*.json"))}
PUBLISHED = {
    name: graph
    for name, graph in GRAPHS.items()
    if any(n["class_type"] == "SanaLoadTransformer" for n in graph.values())
}
TRANSFORMERS = {
    "Sana_Sprint_1.6B_1024px.pth": (tiny.transformer, {}),
    "SANA1.5_1.6B_1024px.pth": (tiny.image_transformer, {"qk_norm": "rms_norm_across_heads"}),
    "Sana_1600M_4Kpx_BF16.pth": (tiny.image_transformer, {"sample_size": 128, "interpolation_scale": 2.0}),
    "SANA_Video_2B_480p.pth": (tiny.video_transformer, {}),
    "SANA_Video_2B_480p_LongLive.pth": (tiny.long_transformer, {}),
}
SMALLER = {"width": 64, "height": 64, "steps": 4}
SAVERS = ("SaveImage", "SanaSaveVideo", "SanaLongVideoSave")
FRAMES = {961: 201, 321: 41, 320: 40, 81: 5}
"""Of a template, to as few as its blocks and its prompts allow."""

SOONER = 0.2
"""Of the seconds at which a prompt starts."""


@pytest.fixture(scope="module")
def files(tmp_path_factory, spiece) -> Path:
    """A base directory with every file that the templates name."""
    home = tmp_path_factory.mktemp("published")
    models = home / "models"
    for kind in ("diffusion_models", "text_encoders", "vae"):
        (models / kind).mkdir(parents=True)
    for name, (make, changes) in TRANSFORMERS.items():
        network = make(**changes)
        weights = layouts.nvlabs(network.state_dict(), positions=getattr(network.config, "sample_size", 2) ** 2)
        torch.save({"state_dict": weights}, models / "diffusion_models" / name)
    gemma.write(models / "text_encoders" / "gemma_2_2b_it_elm_bf16.safetensors", gemma.encoder(), spiece)
    save_file(
        layouts.original_dc_ae(tiny.autoencoder().state_dict()), models / "vae" / "dc-ae-f32c32-sana-1.1.safetensors"
    )
    write_wan(models / "vae" / "wan_2.1_vae.safetensors")
    return home


def write_wan(path: Path) -> None:
    """In ComfyUI's naming, and a config beside it, without which the published sizes are taken."""
    vae = tiny.wan_vae()
    weights = {tiny.original_wan_name(name): value.contiguous() for name, value in vae.state_dict().items()}
    save_file(weights, path)
    path.with_suffix(".json").write_text(json.dumps({"_class_name": "AutoencoderKLWan", **vae.config}))


def smaller(graph: dict) -> dict:
    """A template's graph with sizes that take seconds; all else is as it was shipped."""
    made = json.loads(json.dumps(graph))
    for node in made.values():
        inputs = node["inputs"]
        inputs.update({name: value for name, value in SMALLER.items() if name in inputs})
        if inputs.get("frames") in FRAMES:
            inputs["frames"] = FRAMES[inputs["frames"]]
        if "start" in inputs:
            inputs["start"] *= SOONER
    return made


def frames_of(graph: dict) -> list[int]:
    return [n["inputs"]["frames"] for n in graph.values() if "frames" in n["inputs"]]


def check_files(graph: dict, saved: list[Path]) -> None:
    """Each image and video that a template saves is there, of its size and with something in it."""
    pictures = [path for path in saved if path.suffix in (".png", ".mp4")]
    assert len(pictures) == sum(node["class_type"] in SAVERS for node in graph.values())
    for path, count in zip(sorted(pictures), frames_of(graph) or [1]):
        if path.suffix == ".png":
            shown = [np.asarray(Image.open(path))]
        else:
            with av.open(str(path)) as clip:
                shown = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert len(shown) == count and all(frame.shape == (64, 64, 3) for frame in shown)
        assert np.stack(shown).std() > 1


def test_every_name_is_one_of_these():
    """A template of another file needs a row here."""
    named = [node["inputs"].get("model_name") for graph in PUBLISHED.values() for node in graph.values()]
    assert {name for name in named if name} == {*TRANSFORMERS}
    assert len(PUBLISHED) >= 8


@pytest.mark.parametrize("name", PUBLISHED)
def test_on_the_embedded_host(files, tmp_path, name):
    from sana_nodes import host as hosts

    graph = smaller(PUBLISHED[name])
    if foreign := {n["class_type"] for n in graph.values()} - {*NODE_CLASS_MAPPINGS, *CORE_NODES}:
        pytest.skip(f"{', '.join(foreign)}: nodes of ComfyUI")
    folders = hosts.use("embedded").folders
    folders.models, folders.output = [files / "models"], tmp_path
    try:
        saved = [Path(p) for paths in executor.run(graph, NODE_CLASS_MAPPINGS, folders).saved.values() for p in paths]
    finally:
        hosts._current = None
    check_files(graph, saved)


@pytest.fixture(scope="module")
def server(files):
    from server import Server

    for name in ("input", "output", "custom_nodes", "user", "temp"):
        (files / name).mkdir(exist_ok=True)
    (files / "custom_nodes" / "sana-nodes").symlink_to(tiny.REPOSITORY, target_is_directory=True)
    with Server(files) as running:
        yield running


@pytest.mark.comfyui
@pytest.mark.parametrize("name", PUBLISHED)
def test_in_comfyui(files, server, name):
    if "TorchCompileModel" in {n["class_type"] for n in PUBLISHED[name].values()} and not compiles():
        pytest.skip("no C++ compiler here, which torch.compile needs on a processor")
    graph, output = smaller(PUBLISHED[name]), files / "output"
    shutil.rmtree(output)
    server.wait(server.queue(graph), 600)  # torch.compile takes a minute or two
    check_files(graph, [path for path in output.rglob("*") if path.is_file()])


def compiles() -> bool:
    """Whether there is a compiler of C++."""
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    return bool(found) and subprocess.run([found, "--version"], capture_output=True).returncode == 0
