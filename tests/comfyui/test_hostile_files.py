"""Files that hurt, over HTTP: the loaders stay on the canvas, ComfyUI goes on answering, nothing is wrong silently."""

from __future__ import annotations

import json
import os
import time

import drawing
import graphs
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from server import Server


@pytest.fixture(scope="module")
def hostile(home, reference, sana_reference):
    """Entries of the models folders that once took every loader away, or the whole of ComfyUI."""
    models, made = home / "models", []

    def entry(path, make):
        make(path)
        made.append(path)

    entry(models / "loras" / "loop.safetensors", lambda path: path.symlink_to(path))
    entry(models / "vae" / "pipe.safetensors", os.mkfifo)
    entry(models / "diffusion_models" / "up", lambda path: path.symlink_to(models, target_is_directory=True))
    entry(models / "text_encoders" / "odd", lambda path: path.mkdir())
    (models / "text_encoders" / "odd" / "config.json").write_text('{"_class_name": ["a"], "model_type": {}}')
    tiny.write_lora(models / "loras" / "plain.safetensors")
    made.append(models / "loras" / "plain.safetensors")
    weights = load_file(models / "loras" / "plain.safetensors")
    bomb = {"lora_adapter_metadata": json.dumps({"alpha_pattern": {"(.*)*x": 4, "(a+)+$": 4}})}
    entry(models / "loras" / "bomb.safetensors", lambda path: save_file(weights, path, bomb))
    entry(
        models / "loras" / "other.safetensors", lambda path: save_file({"lora_unet_down.lora_up": torch.ones(2)}, path)
    )
    yield made
    for path in made:
        if path.is_dir() and not path.is_symlink():
            (path / "config.json").unlink()
            path.rmdir()
        else:
            path.unlink()
    (models / "loras" / "adapter_config.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def server(home, hostile):
    with Server(home) as running:
        yield running


def lora(name: str) -> dict:
    return graphs.with_lora(graphs.sana(), (name, 1.0))


def test_every_loader_is_there_and_offers_what_can_be_read(server):
    start = time.monotonic()
    known = json.loads(server.get("/object_info"))
    assert time.monotonic() - start < 30
    for node, widget, name in (
        ("SanaLoadPipeline", "pipeline", "tiny"),
        ("SanaLoadTransformer", "model_name", "tiny"),
        ("SanaLoadTextEncoder", "encoder_name", "tiny"),
        ("SanaLoadVAE", "vae_name", "tiny"),
        ("SanaLoadLora", "lora_name", "plain.safetensors"),
    ):
        offered = known[node]["input"]["required"][widget][0]
        assert name in offered and not {"loop.safetensors", "pipe.safetensors"} & set(offered)


def test_a_pattern_that_would_freeze_it_is_an_error_and_comfyui_answers(server):
    start = time.monotonic()
    assert "alpha_pattern" in server.error(lora("bomb.safetensors"))
    assert time.monotonic() - start < 30 and server.get("/system_stats")


def test_another_models_lora_is_an_error_that_names_it(server):
    assert "other.safetensors" in server.error(lora("other.safetensors"))


def test_the_alpha_of_another_lora_changes_nothing(server, home):
    """An adapter_config.json in the folder belongs to adapter_model.safetensors alone."""
    before = server.pictures(lora("plain.safetensors"))
    plain = server.pictures(graphs.sana())
    assert not drawing.same_pixels(before, plain), "the LoRA changes the image"
    config = {"lora_alpha": 512, "r": 4, "target_modules": ["to_q"]}
    (home / "models" / "loras" / "adapter_config.json").write_text(json.dumps(config))
    os.utime(home / "models" / "loras" / "plain.safetensors")  # ComfyUI loads it again
    assert drawing.same_pixels(server.pictures(lora("plain.safetensors")), before)


def test_a_damaged_cache_of_previews_fails_nothing(home, hostile):
    file = home / "user" / "sana-nodes" / "previews.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"a": [1, 2')
    with Server(home, "--preview-method", "latent2rgb") as server:
        assert server.pictures(graphs.example()).std() > 1
