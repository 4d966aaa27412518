"""Weight files and configs with odd names, numbers and types: refused at the door, in little time and memory."""

from __future__ import annotations

import json
import os
import time
import zipfile

import pytest
import tiny
import torch
from platforms import peak_memory
from safetensors.torch import save_file
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.files.open import open_checkpoint, read_json
from sana_nodes.model_loaders.pipeline import check_pipeline
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae

LONG = b"x" * 2**21


@pytest.mark.parametrize(
    "value", [b"cos\n" + LONG, b"cos\n" + LONG + b"\n.", b"U", b"X\0\0 \0" + LONG + b")R."], ids=range(4)
)
@pytest.mark.parametrize("archive", [True, False])
def test_a_long_name_in_a_pickle_takes_no_time(tmp_path, value, archive):
    """torch would search its error message in the square of the name's length: minutes for a megabyte."""
    file = tmp_path / "model.pth"
    if archive:
        with zipfile.ZipFile(file, "w") as written:
            written.writestr("a/data.pkl", b"\x80\x02" + value)
            written.writestr("a/version", "3\n")
    else:
        file.write_bytes(b"\x80\x02" + value)
    before, start = peak_memory(), time.process_time()
    with pytest.raises(UnusableFile, match=r"model\.pth") as caught:
        load_transformer(file)
    assert len(str(caught.value)) < 800
    assert peak_memory() - before < 64 << 20 and time.process_time() - start < 2.0


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pytorch_file_of_either_format_still_loads(tmp_path, legacy):
    tensors = {"a": torch.arange(70_000), "b": torch.ones(3, 5)}
    torch.save({"state_dict": tensors}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    found = open_checkpoint(tmp_path / "x.pth")
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_a_long_key_is_refused_at_the_door(tmp_path):
    save_file({"a" * 513: torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UnusableFile, match="key of 513 characters") as caught:
        open_checkpoint(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 400
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data.replace(b'"F32"', b'"X32"', 1))  # safetensors' error has the key
    with pytest.raises(UnusableFile, match="not a complete safetensors file") as caught:
        open_checkpoint(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 600


def test_a_huge_json_is_not_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    os.truncate(tmp_path / "config.json", 2**30)
    before = peak_memory()
    with pytest.raises(UnusableFile, match=r"config\.json cannot be read .*1,073,741,824 bytes"):
        read_json(tmp_path / "config.json")
    assert peak_memory() - before < 64 << 20


@pytest.mark.parametrize("name", ["a" * 5000, "x\n", "\ud800", ["a"]], ids=lambda name: repr(name)[:9])
def test_an_odd_shard_is_not_looked_for(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UnusableFile, match="names the shard .* not a file of its folder") as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value).encode()) < 700


def test_integers_are_refused_before_torch_refuses_them(tmp_path):
    tensors = {**tiny.transformer().state_dict(), "proj_out.weight": torch.zeros(32, 64, dtype=torch.int8)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UnusableFile, match=r"x\.safetensors holds torch\.int8 weights"):
        load_transformer(tmp_path / "x.safetensors")


TYPES = {
    ("transformer", "norm_eps"): ["1e-6", [1e-6], None],
    ("transformer", "guidance_embeds_scale"): [{"a": 1}, True, None],
    ("transformer", "num_layers"): [10**400, -3, True],
    ("transformer", "interpolation_scale"): ["1", [1]],
    ("transformer", "qk_norm"): [5, {}],
    ("autoencoder", "scaling_factor"): ["0.4", 0, -1.0, None, [1]],
    ("autoencoder", "encoder_qkv_multiscales"): [5, [5], [[], [], [], ["5"], [5], [5]]],
    ("autoencoder", "encoder_block_types"): [["a" * 10_000] * 6],
    ("wan_vae", "latents_mean"): [1.5, True, "x", ["1"] * 16, [None] * 16],
    ("wan_vae", "latents_std"): [[0.0] * 16, [-1.0] * 16],
    ("wan_vae", "scale_factor_spatial"): [0, 16],
    ("wan_vae", "patch_size"): ["7", {}, 1.5],
    ("ltx2_vae", "patch_size"): [[4], "4", -4, 4.0],
    ("ltx2_vae", "spatial_compression_ratio"): ["32", [32]],
    ("ltx2_vae", "upsample_type"): [["x", "spatiotemporal", "spatiotemporal"]],
}


@pytest.mark.parametrize("model,key", TYPES, ids=" ".join)
def test_a_config_of_other_types_or_signs_is_refused(tmp_path, model, key):
    getattr(tiny, model)().save_pretrained(tmp_path / "m")
    load = load_transformer if model == "transformer" else load_vae
    load(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for value in TYPES[model, key]:
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UnusableFile, match=r"config\.json (says|does not)") as caught:
            load(tmp_path / "m")
        assert len(str(caught.value)) < 800


def test_an_error_shows_no_half_of_a_character_and_no_long_name(tmp_path):
    """A lone surrogate in a message cannot be printed or logged as UTF-8."""
    import quantising
    from sana_nodes.model_loaders.text_encoder import load_text_encoder

    tiny.text_encoder().save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "num_key_value_heads": "\ud800" * 500}))
    tensors = quantising.quantised(tiny.transformer().state_dict(), "float8_e4m3fn")[0]
    mark = json.dumps({"format": "x" * 4000}).encode()
    tensors["transformer_blocks.0.attn1.to_q.comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
    save_file(tensors, tmp_path / "x.safetensors")
    for load, path in ((load_text_encoder, tmp_path / "m"), (load_transformer, tmp_path / "x.safetensors")):
        with pytest.raises(UnusableFile, match="says num_key_value_heads|is quantised as xxx") as caught:
            load(path)
        assert len(str(caught.value).encode("utf-8")) < 700


def test_the_error_for_another_pipeline_is_short(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["\ud800" + "x" * 10_000]}))
    with pytest.raises(UnusableFile, match="not a SANA pipeline") as caught:
        check_pipeline(tmp_path)
    assert len(str(caught.value).encode("utf-8")) < 500
