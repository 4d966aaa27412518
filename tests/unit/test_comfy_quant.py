"""SANA files quantised in ComfyUI's own formats give what the weights they stand for give; others are named."""

from __future__ import annotations

import json

import drawing
import pytest
import tiny
import torch
from quantising import meant, stored
from safetensors.torch import load_file, save_file
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.files.open import open_checkpoint
from sana_nodes.model_loaders.quantised.formats import set_values
from sana_nodes.model_loaders.transformer import load_transformer

LAYERS = [f"transformer_blocks.{block}.{layer}" for block in range(3) for layer in ("attn1.to_q", "attn2.to_out.0")]


def write(path, name: str, how: str = "keys", prefix: str = "", dtype=torch.float32, **more):
    """The random transformer in one file, some layers of it quantised; returns it with the weights they mean."""
    network = tiny.transformer()
    tensors = {key: value.to(dtype) for key, value in network.state_dict().items()}
    said = {"format": name.removesuffix("_rows"), **more}
    for layer in LAYERS:
        weight = tensors.pop(f"{layer}.weight").float()
        tensors |= {f"{layer}.{key}": value for key, value in stored(weight, name).items()}
        if how == "keys":
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        network.get_submodule(layer).weight.data = meant(weight, name)
    metadata = {"_quantization_metadata": json.dumps({"layers": {prefix + layer: said for layer in LAYERS}})}
    save_file(
        {prefix + key: value.contiguous() for key, value in tensors.items()}, path, metadata if how != "keys" else {}
    )
    return network


def floating(path, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """The state dict of a file's transformer once a host that computes in ``dtype`` has taken it."""
    loaded = load_transformer(path)
    set_values(loaded.module, loaded.quantised, dtype)
    return loaded.module.state_dict()


NAMES = ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_tensorwise_rows", "nvfp4"]


@pytest.mark.parametrize("how", ["keys", "metadata"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", NAMES)
def test_layers_become_the_weights_they_stand_for(tmp_path, name, how, prefix):
    network = write(tmp_path / "q.safetensors", name, how, prefix)
    loaded = floating(tmp_path / "q.safetensors")
    for key, value in network.state_dict().items():
        assert torch.allclose(loaded[key], value, rtol=1e-5, atol=1e-7), key


@pytest.mark.parametrize("shape", [(16, 16), (64, 48), (144, 1152), (400, 160)], ids=str)
def test_nvfp4s_scales_are_found_in_every_tile(tmp_path, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, shape[1])
    mark = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    tensors = {**stored(weight, "nvfp4"), "comfy_quant": mark}
    save_file({f"a.{key}": value for key, value in tensors.items()} | {"b": torch.zeros(1)}, tmp_path / "q.safetensors")
    read = open_checkpoint(tmp_path / "q.safetensors")
    assert read.shapes["a.weight"] == shape
    assert torch.allclose(read["a.weight"], meant(weight, "nvfp4"), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_quantised_file_draws_as_diffusers_with_its_weights(host, home, reference, name):
    from diffusers import SanaSprintPipeline

    path = home / "models" / "diffusion_models" / "quantised.safetensors"
    network = write(path, name)
    pipeline = SanaSprintPipeline(**{**reference.components, "transformer": network})
    pipeline.set_progress_bar_config(disable=True)
    model = drawing.call("SanaLoadTransformer", model_name=path.name)[0]
    _, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    mine = drawing.ours((model, clip, vae), "a red ring")
    assert drawing.difference(mine, drawing.theirs(pipeline, "a red ring")) < 1e-4
    path.unlink()


def test_the_log_names_the_formats(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "q.safetensors", "float8_e4m3fn", dtype=torch.bfloat16)
    open_checkpoint(tmp_path / "q.safetensors")
    assert "6 layers are stored as float8_e4m3fn." in caplog.text


def without_marks(tensors: dict) -> dict:
    return {key: value for key, value in tensors.items() if not key.endswith("comfy_quant")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_the_same_weights_with_and_without_marks(tmp_path, name, dtype):
    """A mark says what a scaled fp8 layer shows already; it changes no value."""
    write(tmp_path / "marked.safetensors", name, dtype=torch.bfloat16)
    save_file(without_marks(load_file(tmp_path / "marked.safetensors")), tmp_path / "plain.safetensors")
    marked, plain = (floating(tmp_path / f"{which}.safetensors", dtype) for which in ("marked", "plain"))
    for layer in LAYERS:
        assert torch.equal(marked[f"{layer}.weight"], plain[f"{layer}.weight"])
        assert marked[f"{layer}.weight"].dtype == dtype


def test_a_file_that_mixes_marks_and_scales(tmp_path):
    """Some layers have ComfyUI's mark, others the older scale_weight alone."""
    network = write(tmp_path / "q.safetensors", "float8_e4m3fn")
    tensors = load_file(tmp_path / "q.safetensors")
    for layer in LAYERS[:3]:
        del tensors[f"{layer}.comfy_quant"]
        tensors[f"{layer}.scale_weight"] = tensors.pop(f"{layer}.weight_scale")
    save_file(tensors, tmp_path / "mixed.safetensors")
    loaded = floating(tmp_path / "mixed.safetensors")
    for key, value in network.state_dict().items():
        assert torch.allclose(loaded[key], value, rtol=1e-5, atol=1e-7), key


@pytest.mark.parametrize(
    "name,more", [("int8_blockwise", {}), ("convrot_w4a4", {}), ("int8_tensorwise", {"convrot": True}), ("", {})]
)
def test_other_formats_are_named(tmp_path, name, more):
    write(tmp_path / "q.safetensors", "int8_tensorwise", **{"format": name, **more})
    said = " with ".join([name or "no format", *more])
    with pytest.raises(UnusableFile, match=f"attn1.to_q is quantised as {said}, which is unsupported"):
        load_transformer(tmp_path / "q.safetensors")


def test_damaged_marks_are_said(tmp_path):
    path = tmp_path / "q.safetensors"
    mark = torch.tensor(list(b"{"), dtype=torch.uint8)
    save_file({"a.weight": torch.zeros(2, 2, dtype=torch.int8), "a.comfy_quant": mark}, path)
    with pytest.raises(UnusableFile, match="its description of quantised layers is not JSON"):
        open_checkpoint(path)
    mark = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file({"a.weight": torch.zeros(2, 2, dtype=torch.uint8), "a.comfy_quant": mark}, path)
    with pytest.raises(UnusableFile, match="a is quantised as nvfp4 but has no weight_scale"):
        open_checkpoint(path)
