"""Gemma-2 as people have it: one file with its tokenizer inside, folders of every make, and what is none."""

from __future__ import annotations

import json
import shutil

import drawing
import gemma
import pytest
import spieces
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.model_loaders import gemma_tokenizer
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.text_encoder import load_text_encoder

pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "encoders" / gemma.FILE


@pytest.fixture
def write(file, spiece):
    """Write the file; returns its module."""

    def written(model=spiece, **saving):
        file.parent.mkdir(exist_ok=True)
        module = gemma.encoder()
        gemma.write(file, module, model, **saving)
        return module

    return written


@pytest.fixture
def single(home, reference, host, spiece, theirs):
    """The file in models/text_encoders, and diffusers' pipeline over the same weights and pieces."""
    from diffusers import SanaSprintPipeline

    module, path = gemma.encoder(), home / "models" / "text_encoders" / gemma.FILE
    gemma.write(path, module, spiece)
    parts = {**reference.components, "text_encoder": module, "tokenizer": theirs}
    pipeline = SanaSprintPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    yield pipeline
    path.unlink()


@pytest.mark.parametrize("prompt", ["A Red  RING\n\non the left", "日本の山と海 🦊", "a word, " * 200], ids=str.split)
def test_a_single_file_draws_as_diffusers_does(single, prompt):
    model, _, vae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    clip = drawing.call("SanaLoadTextEncoder", encoder_name=gemma.FILE)[0]
    mine = drawing.ours((model, clip, vae), prompt)
    assert drawing.difference(mine, drawing.theirs(single, prompt)) < 1e-4


@pytest.mark.parametrize("prefix", ["", "model.", "text_encoders.gemma2_2b.transformer.model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_prefixes_and_dtypes(write, file, prefix, dtype):
    others = {"lm_head.weight": torch.zeros(800, 48), "logit_scale": torch.ones(())}
    others |= {"model.diffusion_model.x.weight": torch.zeros(1)} if prefix.startswith("text_encoders") else {}
    module = write(prefix=prefix, dtype=dtype, **others)
    loaded = load_text_encoder(file)
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value.to(dtype)), name
    read, made = loaded.module.config.to_dict(), module.config.to_dict()
    assert {key for key in made if read.get(key) != made[key]} <= {"dtype", "torch_dtype", "architectures"}


def test_a_config_beside_the_file_overrides(write, file, tmp_path):
    module = tiny.text_encoder()
    file.parent.mkdir()
    gemma.write(file, module, gemma.spiece())
    with pytest.raises(
        UnusableFile, match="64 query and 32 key channels over 48 do not divide into heads of 256.*config.json beside"
    ):
        load_text_encoder(file)
    for name in (file.with_suffix(".json"), file.with_name("config.json")):
        name.write_text(json.dumps(module.config.to_dict()))
        assert load_text_encoder(file).module.config.head_dim == 16
        name.unlink()


@pytest.mark.parametrize("folder", [".", "tokenizer", "../tokenizer"])
@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("inside", ["missing", "damaged"])
def test_a_tokenizer_beside_the_file(write, file, spiece, theirs, folder, kind, inside):
    write(model=None if inside == "missing" else spiece[:-100])
    beside = file.parent / folder
    beside.mkdir(exist_ok=True)
    if kind == "tokenizer.model":
        (beside / kind).write_bytes(spiece)
    else:
        shutil.copy(theirs.folder / kind, beside)
    loaded = load_text_encoder(file)
    for text in gemma.TRICKY:
        assert loaded.tokenizer(text).input_ids == theirs(text).input_ids


def test_a_file_without_a_tokenizer_says_where_it_looked(write, file):
    write(model=None)
    with pytest.raises(FileNotFoundError, match="no tokenizer.json or tokenizer.model for .*looked in"):
        load_text_encoder(file)


NO_BYTES = {
    "a scalar": torch.tensor(7, dtype=torch.uint8),
    "floats": torch.rand(4000),
    "halves": torch.rand(4000).half(),
    "whole numbers": torch.arange(4000),
    "signed bytes": torch.arange(100, dtype=torch.int8),
    "a matrix": torch.zeros(40, 40, dtype=torch.uint8),
    "16 MB and one": torch.zeros(gemma_tokenizer.MOST_BYTES + 1, dtype=torch.uint8),
}


@pytest.mark.parametrize("name", NO_BYTES)
def test_a_spiece_model_that_is_no_row_of_bytes(write, file, theirs, name):
    write(model=None, spiece_model=NO_BYTES[name])
    with pytest.raises(
        UnusableFile, match="tiny_gemma.safetensors: its spiece_model is not a row of at most 16,777,216"
    ):
        load_text_encoder(file)
    shutil.copy(theirs.folder / "tokenizer.json", file.parent)
    assert load_text_encoder(file).tokenizer.encode("a ring") == theirs("a ring").input_ids


@pytest.mark.parametrize("model", [b"", b"\x08", b"{}"], ids=repr)
def test_a_spiece_model_that_is_none(write, file, model):
    write(model=None, spiece_model=torch.tensor(list(model), dtype=torch.uint8))
    with pytest.raises(UnusableFile, match="its spiece_model (holds no|is not Gemma-2's) SentencePiece model"):
        load_text_encoder(file)


@pytest.mark.parametrize("kind", ["spiece_model", "tokenizer.json"])
def test_a_tokenizer_of_more_tokens_than_the_weights(write, file, theirs, kind):
    words = [(f"q{n}", -1.0, 1) for n in range(600)]
    write(model=spieces.model(words) if kind == "spiece_model" else None)
    if kind == "tokenizer.json":
        table = json.loads((theirs.folder / kind).read_text(encoding="utf-8"))
        table["model"]["vocab"]["far"] = 10**9
        (file.parent / kind).write_text(json.dumps(table), encoding="utf-8")
    known = "887" if kind == "spiece_model" else "1000000001"
    with pytest.raises(UnusableFile, match=f"the tokenizer of .* knows {known} tokens and its weights only 800"):
        load_text_encoder(file)


def test_strict_loading_holds_for_a_file_too(write, file):
    write(**{"model.layers.0.surplus.weight": torch.zeros(1)})
    with pytest.raises(UnusableFile, match=r"1 unknown \(such as layers.0.surplus.weight\)"):
        load_text_encoder(file)


STRANGERS = {
    "Gemma-3 text encoder": ["self_attn.q_proj", "self_attn.q_norm", "pre_feedforward_layernorm"],
    "language model that is not Gemma-2": ["self_attn.q_proj", "input_layernorm"],
}
OTHERS = {
    "T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.embed_tokens.weight"],
    "CLIP text encoder": ["text_model.encoder.layers.0.self_attn.q_proj.weight"],
    "LoRA": ["model.layers.0.self_attn.q_proj.lora_A.weight"],
}
FILES = {
    **{name: [f"model.layers.0.{key}.weight" for key in keys] for name, keys in STRANGERS.items()},
    **OTHERS,
}


@pytest.mark.parametrize("name", FILES)
def test_other_text_encoders_are_named(tmp_path, name):
    keys = FILES[name] + (["model.embed_tokens.weight"] if name in STRANGERS else [])
    save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / "other.safetensors")
    with pytest.raises(UnusableFile, match=f"other.safetensors is a {name}, not a Gemma-2 text encoder. Give Sana"):
        load_text_encoder(tmp_path / "other.safetensors")


def folder(tmp_path, **config):
    tiny.text_encoder().save_pretrained(tmp_path / "gemma")
    shutil.copytree(tiny.DEMO / "tokenizer", tmp_path / "gemma", dirs_exist_ok=True)
    path = tmp_path / "gemma" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return path.parent


@pytest.mark.parametrize("kind", ["gemma", "gemma3_text", "t5", "clip_text_model"])
def test_a_folder_of_another_model_is_named(tmp_path, kind):
    with pytest.raises(UnusableFile, match=f"config.json says model_type {kind}, not gemma2. Give"):
        load_text_encoder(folder(tmp_path, model_type=kind))


def test_a_folder_without_usable_weights_says_why(tmp_path):
    path = folder(tmp_path)
    weights = path / "model.safetensors"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4988025760\n"
    weights.write_text(pointer)
    with pytest.raises(UnusableFile, match="model.safetensors is a Git LFS pointer.*run `git lfs pull`"):
        load_text_encoder(path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="has no .*model.safetensors.*asks for a licence first"):
        load_text_encoder(path)
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnusableFile, match="has its weights only as pytorch_model.bin; get the folder's safetens"):
        load_text_encoder(path)


def test_a_tokenizer_that_is_a_pointer_says_so(tmp_path):
    path = folder(tmp_path)
    (path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17\n")
    with pytest.raises(UnusableFile, match="tokenizer.json is a Git LFS pointer"):
        load_text_encoder(path)


@pytest.mark.comfyui
@pytest.mark.parametrize("name", ["lumina2.LuminaTokenizer", "pixeldit.PixelDiTGemma2Tokenizer"])
def test_comfyuis_own_gemma_is_refused_with_the_reason(home, reference, spiece, name):
    """What core CLIPLoader makes of the same file: its tokenizer is built for real, its 5 GB of weights are not."""
    import in_process
    from sana_nodes import host as hosts

    in_process.start_comfyui(home)
    hosts.use("comfyui")
    room, tokenizer = name.split(".")
    module = pytest.importorskip(f"comfy.text_encoders.{room}", reason="a text encoder of later versions")
    data = {"spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}
    clip = type("CLIP", (), {"tokenizer": getattr(module, tokenizer)(tokenizer_data=data)})()
    with pytest.raises(
        ValueError, match=rf"\({tokenizer}\) is not SANA's Gemma-2: load it with Sana Load Text.*soft caps"
    ):
        drawing.call("SanaEncodePrompt", clip=clip, text="x")
    hosts._current = None
