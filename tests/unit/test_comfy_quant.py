"""SANA files quantised in ComfyUI's own formats draw what the weights they stand for draw; others are named."""

from __future__ import annotations

import json

import drawing
import pytest
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.model_loaders.checkpoints import UnusableFile, open_checkpoint
from sana_nodes.model_loaders.transformer import load_transformer

LAYERS = [f"transformer_blocks.{block}.{layer}" for block in range(3) for layer in ("attn1.to_q", "attn2.to_out.0")]


def stored(weight: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """A weight in a format, as ComfyUI's own quantisers write it."""
    if name == "nvfp4":
        kitchen = pytest.importorskip("comfy_kitchen", reason="comfy_kitchen, which ComfyUI brings, writes nvfp4")
        scale = weight.abs().amax() / (448 * 6)
        packed, blocks = kitchen.quantize_nvfp4(weight, scale)
        return {"weight": packed, "weight_scale": blocks.view(torch.uint8), "weight_scale_2": scale}
    if name.startswith("int8"):
        scale = weight.abs().amax(1, keepdim=True) / 127 if name.endswith("rows") else weight.abs().amax() / 127
        return {"weight": torch.round(weight / scale).to(torch.int8), "weight_scale": scale}
    kind = getattr(torch, name)
    scale = weight.abs().amax() / torch.finfo(kind).max
    return {"weight": (weight / scale).to(kind), "weight_scale": scale, "input_scale": torch.ones(())}


def meant(weight: torch.Tensor, name: str) -> torch.Tensor:
    held = stored(weight, name)
    if name != "nvfp4":
        return held["weight"].float() * held["weight_scale"]
    import comfy_kitchen

    blocks = held["weight_scale"].view(torch.float8_e4m3fn)
    return comfy_kitchen.dequantize_nvfp4(held["weight"], held["weight_scale_2"], blocks, torch.float32)


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


NAMES = ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_tensorwise_rows", "nvfp4"]


@pytest.mark.parametrize("how", ["keys", "metadata"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", NAMES)
def test_layers_become_the_weights_they_stand_for(tmp_path, name, how, prefix):
    network = write(tmp_path / "q.safetensors", name, how, prefix)
    loaded = load_transformer(tmp_path / "q.safetensors").module.state_dict()
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


def test_weights_take_the_dtype_of_the_rest_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "q.safetensors", "float8_e4m3fn", dtype=torch.bfloat16)
    assert open_checkpoint(tmp_path / "q.safetensors")[f"{LAYERS[0]}.weight"].dtype == torch.bfloat16
    assert "6 layers stored as float8_e4m3fn become bfloat16." in caplog.text


@pytest.mark.parametrize(
    "name,more", [("mxfp8", {}), ("convrot_w4a4", {}), ("int8_tensorwise", {"convrot": True}), ("", {})]
)
def test_other_formats_are_named(tmp_path, name, more):
    write(tmp_path / "q.safetensors", "int8_tensorwise", **{"format": name, **more})
    said = " with ".join([name or "no format", *more])
    with pytest.raises(UnusableFile, match=f"attn1.to_q is quantised as {said}, which is not read here"):
        load_transformer(tmp_path / "q.safetensors")


def test_damaged_marks_are_said(tmp_path):
    path = tmp_path / "q.safetensors"
    mark = torch.tensor(list(b"{"), dtype=torch.uint8)
    save_file({"a.weight": torch.zeros(2, 2, dtype=torch.int8), "a.comfy_quant": mark}, path)
    with pytest.raises(UnusableFile, match="what it says of its quantised layers cannot be read"):
        open_checkpoint(path)
    mark = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file({"a.weight": torch.zeros(2, 2, dtype=torch.uint8), "a.comfy_quant": mark}, path)
    with pytest.raises(UnusableFile, match="a is quantised as nvfp4 and lacks its weight_scale"):
        open_checkpoint(path)
