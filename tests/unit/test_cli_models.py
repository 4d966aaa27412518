"""``sana-nodes models``: ComfyUI's further folders, older folder names, and entries that cannot be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from sana_nodes import cli
from sana_nodes.cli.extra_paths import add_extra_paths
from sana_nodes.host.embedded.folders import Folders


@pytest.fixture
def comfyui(tmp_path, monkeypatch) -> Path:
    """A folder that looks like a ComfyUI, which COMFYUI_PATH names."""
    folder = tmp_path / "ComfyUI"
    for name in ("comfy", "models/vae"):
        (folder / name).mkdir(parents=True)
    (folder / "main.py").write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    return folder


def listed(capsys, *arguments: str) -> list[str]:
    assert cli.main(["models", *arguments]) == 0
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


EXTRA = """
# as ComfyUI's example has it
a111:
    base_path: ../disk/
    vae: VAE
    loras: |
        Lora
        LyCORIS
other:
    base_path: {absolute}
    is_default: true
    unet: unet
    clip: encoders
    vae: |
        first
        second
empty:
"""


def test_extra_model_paths(comfyui, tmp_path):
    (comfyui / "extra_model_paths.yaml").write_text(EXTRA.format(absolute=tmp_path / "big"))
    folders = Folders(models=[comfyui / "models"])
    assert add_extra_paths(folders, comfyui) is None
    disk, big, own = tmp_path / "disk", tmp_path / "big", comfyui / "models"
    assert folders.roots("vae") == [big / "second", big / "first", own / "vae", disk / "VAE"]
    demo = tiny.REPOSITORY / "demo" / "models"
    assert folders.roots("loras") == [own / "loras", disk / "Lora", disk / "LyCORIS", demo / "loras"]
    assert folders.roots("diffusion_models") == [big / "unet", own / "unet", own / "diffusion_models"]
    assert folders.roots("text_encoders") == [big / "encoders", own / "text_encoders", own / "clip"]


IN_COMFYUI = pytest.mark.skipif(tiny.COMFYUI is None, reason="COMFYUI_PATH names no ComfyUI")
KINDS = ("vae", "loras", "diffusion_models", "text_encoders")


def comfyui_roots(base: Path, step: str, argument: Path) -> dict[str, list[Path]]:
    """Where a real ComfyUI over the base directory looks for each kind, after a step of Python in its process."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); base, argument = sys.argv[2:]; "
        "sys.argv = ['main.py', '--base-directory', base, '--cpu']; import comfy.options; "
        f"comfy.options.enable_args_parsing(); import folder_paths; {step}; "
        f"print(json.dumps({{kind: folder_paths.get_folder_paths(kind) for kind in {KINDS}}}))"
    )
    arguments = [str(tiny.COMFYUI), str(base), str(argument)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return {kind: list(map(Path, paths)) for kind, paths in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.comfyui
@IN_COMFYUI
def test_extra_model_paths_as_comfyui_reads_them(comfyui, tmp_path):
    file = comfyui / "extra_model_paths.yaml"
    file.write_text(EXTRA.format(absolute=tmp_path / "big"))
    step = "from utils import extra_config; extra_config.load_extra_path_config(argument)"
    folders = Folders(models=[comfyui / "models"])
    assert add_extra_paths(folders, comfyui) is None
    for kind, roots in comfyui_roots(comfyui, step, file).items():
        assert folders.roots(kind) == roots


@pytest.mark.comfyui
@IN_COMFYUI
def test_a_models_folder_comes_first_in_comfyui_with_older_names_too(comfyui, tmp_path):
    for name in ("unet", "diffusion_models", "clip", "vae"):
        (tmp_path / "ours" / name).mkdir(parents=True)
    step = "from pathlib import Path; from sana_nodes.host.comfyui import process; process.add_models(Path(argument))"
    found = comfyui_roots(comfyui, step, tmp_path / "ours")
    ours = Folders(models=[tmp_path / "ours"])
    for kind in KINDS:
        expected = [root for root in ours.roots(kind) if root.is_dir()]
        assert found[kind][: len(expected)] == expected


def test_models_in_the_further_folders_are_listed(comfyui, tmp_path, capsys):
    (comfyui / "extra_model_paths.yaml").write_text(EXTRA.format(absolute=tmp_path / "big"))
    tiny.autoencoder().save_pretrained(tmp_path / "disk" / "VAE" / "ours")
    tiny.transformer().save_pretrained(comfyui / "models" / "unet" / "sprint")
    lines = listed(capsys)
    assert lines[0] == f"models in {comfyui / 'models'}" and f"and vae in {tmp_path / 'disk' / 'VAE'}" in lines
    assert "vae/ours: DC-AE" in lines and "diffusion_models/sprint: SANA-Sprint transformer" in lines


@pytest.mark.parametrize(
    "text", ["a: [1, 2]", "- 1", "a: {vae: [x]}", "a: {vae: 5}", "{", "a: !!python/object:os.system {}", "\x00"]
)
def test_an_unusable_file_of_further_folders_is_named_and_skipped(comfyui, text, capsys):
    (comfyui / "extra_model_paths.yaml").write_text(text)
    lines = listed(capsys)
    assert [
        line for line in lines if line.startswith(f"skipped: {comfyui / 'extra_model_paths.yaml'} cannot be used: ")
    ]
    assert "example workflows" in lines


@pytest.mark.skipif(os.name != "posix", reason="makes FIFOs and links")
def test_entries_that_cannot_be_read_are_named_and_the_rest_is_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", "")
    tiny.autoencoder().save_pretrained(tmp_path / "vae" / "good")
    (tmp_path / "vae" / "loop").symlink_to("loop")
    (tmp_path / "vae" / "gone.safetensors").symlink_to("nowhere")
    os.mkfifo(tmp_path / "vae" / "pipe.safetensors")
    (tmp_path / "vae" / "text.safetensors").write_text("not weights")
    (tmp_path / "vae" / "listed").mkdir()
    (tmp_path / "vae" / "listed" / "config.json").write_text('{"_class_name": ["AutoencoderDC"]}')
    (tmp_path / "diffusers" / "odd").mkdir(parents=True)
    (tmp_path / "diffusers" / "odd" / "model_index.json").write_text('{"_class_name": ["SanaPipeline"]}')
    usual = os.scandir

    def forbidden(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return usual(path)

    (tmp_path / "vae" / "secret").mkdir()
    monkeypatch.setattr(os, "scandir", forbidden)
    lines = listed(capsys, "--models", str(tmp_path))
    assert "vae/good: DC-AE" in lines
    for name, reason in (
        ("loop", "Too many levels of symbolic links"),
        ("gone.safetensors", "a link that leads nowhere"),
        ("pipe.safetensors", "neither a file nor a folder"),
        ("secret", "Permission denied"),
    ):
        assert [line for line in lines if line == f"skipped: {tmp_path / 'vae' / name}: {reason}"] or name == "loop"
    assert [line for line in lines if line.startswith(f"skipped: {tmp_path / 'vae' / 'loop'}: ")]
    assert [line for line in lines if line.startswith("vae/text.safetensors: unusable: ")]
    assert [line for line in lines if line.startswith("vae/listed: ")]
    assert [line for line in lines if line.startswith("diffusers/odd: unusable: ")]
