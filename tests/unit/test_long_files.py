"""LongSANA's files: the same keys and shapes as SANA-Video's, told apart by class, by name, or by choice."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from layouts import nvlabs
from safetensors.torch import save_file
from sana_nodes.cli import inventory, published
from sana_nodes.host.embedded.folders import Folders
from sana_nodes.model_loaders.files.kinds import Kind, describe
from sana_nodes.model_loaders.files.listing import kinds_of
from sana_nodes.model_loaders.pipeline import check_pipeline, load_pipeline
from sana_nodes.model_loaders.transformer import load_transformer


@pytest.fixture(scope="module")
def network():
    return tiny.long_transformer(num_layers=2)


def training_file(network) -> dict:
    """What LongSANA's training saves: the generator, its average, and a critic, under names of a wrapper."""
    weights = {f"model.{name}": value for name, value in nvlabs(network.state_dict()).items()}
    other = {name: value + 1 for name, value in weights.items()}
    return {"generator": weights, "generator_ema": other, "critic": other, "step": 3}


@pytest.mark.parametrize(
    ("name", "content", "long"),
    [
        ("SANA_Video_2B_480p_LongLive.pth", "nvlabs", True),
        ("LongSANA_2B_480p_self_forcing.pt", "training", True),
        ("self_forcing.pt", "training", False),
        ("longlive.safetensors", "plain", True),
        ("SANA_Video_2B_480p.pth", "nvlabs", False),
    ],
)
def test_a_files_name_tells(tmp_path, network, name, content, long):
    path, weights = tmp_path / name, network.state_dict()
    if content == "plain":
        save_file(weights, path)
    else:
        torch.save({"state_dict": nvlabs(weights)} if content == "nvlabs" else training_file(network), path)
    loaded = load_transformer(path)
    assert (loaded.spec.family.block_causal, loaded.spec.name) == (long, "LongSANA" if long else "SANA-Video")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.module.state_dict().items())
    for variant in ("standard", "long"):
        assert load_transformer(path, variant).spec.family.block_causal == (variant == "long")
    label = inventory._checkpoint([tmp_path], name)
    assert label.startswith("LongSANA transformer" if long else "SANA-Video transformer")
    if path.suffix == ".safetensors":
        assert kinds_of(path) == (Kind.LONG_VIDEO if long else Kind.VIDEO,)


def test_a_folders_class_tells(tmp_path, network, long_folder):
    assert load_transformer(long_folder / "transformer").spec.name == "LongSANA"
    assert kinds_of(long_folder / "transformer") == (Kind.LONG_VIDEO,)
    network.save_pretrained(tmp_path / "diffusion_models" / "mine")
    assert load_transformer(tmp_path / "diffusion_models" / "mine").spec.name == "SANA-Video"
    config = tmp_path / "diffusion_models" / "mine" / "config.json"
    changed = {**json.loads(config.read_text()), "_class_name": "SanaVideoCausalTransformer3DModel"}
    config.write_text(json.dumps(changed))
    assert load_transformer(config.parent).spec.name == "LongSANA"
    assert ("mine", "LongSANA transformer") in inventory.found(Folders(models=[tmp_path]), "diffusion_models")
    assert load_transformer(config.parent, "standard").spec.name == "SANA-Video"


def test_a_pipeline_of_the_name_that_diffusers_will_have(long_folder, tmp_path):
    loaded = load_pipeline(long_folder)
    assert loaded.transformer.spec.name == "LongSANA" and loaded.transformer.spec.flow_shift == 8.0
    other = tmp_path / "LongLive_diffusers"
    other.mkdir()
    for part in long_folder.iterdir():
        if part.name != "model_index.json":
            (other / part.name).symlink_to(part)
    index = json.loads((long_folder / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "LongSanaVideoPipeline"}))
    assert check_pipeline(other) == "LongSanaVideoPipeline"


def test_only_a_video_model_is_long(tmp_path, network, reference, home):
    with pytest.raises(ValueError, match="variant is long, but .* is a SANA-Sprint transformer: choose auto"):
        load_transformer(home / "models" / "diffusion_models" / "tiny", "long")
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="variant is 'longer'; choose one of auto, standard, long"):
        load_transformer(tmp_path / "a.safetensors", "longer")


def test_the_prefix_of_training_makes_no_transformer_of_other_models():
    found = describe(["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
    assert found.kind is Kind.LANGUAGE_MODEL


def test_models_of_one_size_are_told_apart(tmp_path, network):
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        weights = tiny.long_transformer(seed, num_layers=2).to(torch.bfloat16 if name == "c" else torch.float32)
        save_file(weights.state_dict(), tmp_path / f"{name}_longsana.safetensors")
    prints = {name: load_transformer(tmp_path / f"{name}_longsana.safetensors").spec.fingerprint for name in "abc"}
    assert prints["a"] == prints["c"] != prints["b"] and len(prints["a"]) == 16


def test_the_published_model_is_known():
    row = next(row for row in published.published() if row.name == "longsana-480p")
    assert (row.repository, row.kind) == ("Efficient-Large-Model/SANA-Video_2B_480p_LongLive_diffusers", "diffusers")
