"""What the page is told of a model file, from its header."""

from __future__ import annotations

import json
import time

import pytest
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.model_loaders.files import facts, listing
from sana_nodes.model_loaders.files.kinds import Kind
from sana_nodes.networks.latent_spaces import DC_AE, WAN
from sana_nodes.nodes.describing import amount, describe


def test_a_transformer(host, reference, home):
    (part,) = describe("SanaLoadTransformer", "tiny")["parts"]
    state = reference.transformer.state_dict()
    assert part["label"].startswith("SANA-Sprint ") and part["dtype"] == "fp32"
    assert part["parameters"] == sum(value.numel() for value in state.values())
    assert part["memory"] == sum(value.nbytes for value in state.values())
    (halved,) = describe("SanaLoadTransformer", "tiny", "bf16")["parts"]
    assert (halved["dtype"], halved["memory"]) == ("bf16", 2 * part["parameters"])


def test_a_pipeline_has_three_parts(host, reference):
    labels = [part["label"] for part in describe("SanaLoadPipeline", "tiny")["parts"]]
    assert labels[0].startswith("SANA-Sprint") and [label.rpartition(" ")[0] for label in labels[1:]] == [
        "Gemma-2",
        "DC-AE",
    ]


def test_latent_spaces_from_headers(host, video_references, home):
    models = home / "models" / "diffusers"
    assert facts.latent_space(models / "tiny" / "transformer") == facts.latent_space(models / "tiny" / "vae") == DC_AE
    assert facts.latent_space(models / "tiny-video" / "transformer") == WAN
    assert facts.latent_space(models / "tiny-video" / "vae") == WAN
    assert facts.latent_space(models / "absent") is None


@pytest.mark.parametrize("name", ["../tiny", "/etc", "absent", "", "a\0b"])
def test_nothing_outside_the_model_folders(host, reference, name):
    answer = describe("SanaLoadVAE", name)
    assert "parts" not in answer and answer["error"]
    assert describe("SanaLoadVAE", "absent")["missing"] is True
    assert list(describe("SaveImage", name)) == ["error"]


def test_a_pytorch_file_is_not_opened(host, reference, home):
    file = home / "models" / "vae" / "old.pth"
    file.write_bytes(b"no archive")
    try:
        (part,) = describe("SanaLoadVAE", "old.pth")["parts"]
    finally:
        file.unlink()
    assert (part["label"], part["parameters"], part["memory"]) == ("", 0, 10)


def test_no_tensor_is_read_and_it_is_quick(tmp_path):
    """A header of 700 tensors in far less than 20 ms once it is cached, and a changed file is read again."""
    file = tmp_path / "model.safetensors"
    save_file({f"layers.{i}.weight": torch.zeros(8, 8, dtype=torch.bfloat16) for i in range(700)}, file)
    assert facts.facts_of(file) == facts.Facts(None, 700 * 64, "bf16", 700 * 128)
    began = time.perf_counter()
    for _ in range(20):
        facts.facts_of(file)
    assert (time.perf_counter() - began) / 20 < 0.02
    save_file({"embed_tokens.weight": torch.zeros(4, 4)}, file)
    assert facts.facts_of(file).parameters == 16


@pytest.mark.parametrize(
    "count,text", [(592_000_000, "0.6B"), (1_604_000_000, "1.6B"), (2_030_000_000, "2B"), (12_400_000, "12M")]
)
def test_sizes_as_people_say_them(count, text):
    assert amount(count) == text


def test_a_long_video_is_told_by_its_config_and_by_its_name(tmp_path):
    """As the loaders and `sana-nodes models` do: its tensors are those of SANA-Video."""
    weights = tiny.video_transformer().state_dict()
    for name in ("any", "longlive"):
        save_file(weights, tmp_path / f"{name}.safetensors")
    assert facts.facts_of(tmp_path / "longlive.safetensors").kind is Kind.LONG_VIDEO
    assert facts.facts_of(tmp_path / "any.safetensors").kind is Kind.VIDEO
    (tmp_path / "any.json").write_text(json.dumps({"_class_name": "SanaVideoCausalTransformer3DModel"}))
    assert facts.facts_of(tmp_path / "any.safetensors").kind is Kind.LONG_VIDEO
    assert Kind.LONG_VIDEO in listing.kinds_of(tmp_path / "any.safetensors")
