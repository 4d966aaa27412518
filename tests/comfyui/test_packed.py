"""Quantised files stay packed in a ComfyUI that has such layers, and give what their dequantised weights give."""

from __future__ import annotations

import json

import core_nodes
import drawing
import filming
import in_process
import pytest
import quantising
import tiny
import torch
from safetensors.torch import load_file, save_file
from sana_nodes.model_loaders.files.open import open_checkpoint
from sana_nodes.model_loaders.quantised.packing import PACKINGS
from sana_nodes.model_loaders.quantised.writer import write_quantised

PROMPT = "a red ring on the left of a blue background"


@pytest.fixture(scope="module")
def host(home, reference, video_references):
    from sana_nodes import host as hosts

    in_process.start_comfyui(home)
    yield hosts.use("comfyui")
    hosts._current = None


@pytest.fixture(scope="module")
def formats(host):
    from sana_nodes.host.comfyui import packed

    return packed.supported_formats()


MAKERS = {"sprint": tiny.transformer, "video": tiny.video_transformer}


@pytest.fixture(scope="module")
def files(home, host):
    """Quantised files in models/diffusion_models: a function of the kind of model and the format."""

    def file(kind: str, name: str):
        path = home / "models" / "diffusion_models" / f"packed-{kind}-{name}.safetensors"
        if not path.exists():
            network = MAKERS[kind]()
            floating = path.with_name("floating.safetensors")
            save_file(dict(network.state_dict()), floating)
            write_quantised(open_checkpoint(floating), path, name)
            path.with_suffix(".json").write_text(json.dumps(dict(network.config)))
            floating.unlink()
        return path

    return file


def load(path, **given):
    return drawing.call("SanaLoadTransformer", model_name=path.name, **given)[0]


def packed_layers(model) -> dict:
    from sana_nodes.host.comfyui.packed import Packed

    found = drawing.network_of(model).named_modules()
    return {name: part for name, part in found if isinstance(part, Packed)}


@pytest.fixture(scope="module")
def parts(host):
    return {
        "sprint": drawing.call("SanaLoadPipeline", pipeline="tiny")[1:],
        "video": drawing.call("SanaLoadPipeline", pipeline="tiny-video")[1:],
    }


def image(kind: str, model, parts) -> torch.Tensor:
    whole = (model, *parts[kind])
    return drawing.ours(whole, PROMPT) if kind == "sprint" else filming.ours(whole, steps=2)


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("kind", MAKERS)
def test_layers_stay_packed_and_give_what_dequantised_ones_give(files, formats, parts, kind, name):
    model, floating = load(files(kind, name)), load(files(kind, name), weight_dtype="fp32")
    assert not packed_layers(floating)
    layers = packed_layers(model)
    if PACKINGS[name].format not in formats:
        assert not layers or name == "nvfp4"  # of which the convolutions along time are float8
    else:
        import comfy.quant_ops

        ending = {layer.split(".", 2)[2] for layer in layers}
        attention = {f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")}
        convolutions = {"ff.conv_inverted", "ff.conv_point"} | ({"ff.conv_temp"} if kind == "video" else set())
        assert ending == attention | convolutions and len(layers) == 3 * len(ending)
        assert all(isinstance(part.weight, comfy.quant_ops.QuantizedTensor) for part in layers.values())
    assert drawing.difference(image(kind, model, parts), image(kind, floating, parts)) < 1e-5
    assert all(hasattr(part.weight, "_qdata") for part in layers.values()), "a layer was unpacked by a run"


def test_older_versions_dequantise(formats, host):
    import comfyui_version

    version = tuple(int(n) for n in comfyui_version.__version__.split(".")[:2])
    wanted = {"float8_e4m3fn", "float8_e5m2", "nvfp4"} | ({"int8_tensorwise", "mxfp8"} if version >= (0, 33) else set())
    assert wanted <= formats.keys() if version >= (0, 8) else not formats


@pytest.fixture
def needs_nvfp4(formats):
    if "nvfp4" not in formats:
        pytest.skip("this ComfyUI has no packed layers")


def test_estimates_count_packed_bytes(files, needs_nvfp4):
    import comfy.model_management

    path = files("video", "nvfp4")
    stored = {key: value.nbytes for key, value in load_file(path).items()}
    model, floating = load(path), load(path, weight_dtype="bf16")
    parts = [(f"{n}.{k}", v) for n, part in packed_layers(model).items() for k, v in part.state_dict().items()]
    held = {key: value.nbytes for key, value in parts if not key.endswith("bias")}
    assert held and held == {key: stored[key] for key in held}
    assert model.model_size() == pytest.approx(sum(stored.values()), rel=0.15)  # the rest is in the compute dtype
    assert model.model_size() < 0.75 * floating.model_size()  # most of a tiny model is not in its blocks
    layers = packed_layers(model)
    before = sum(2 * part.weight.numel() for part in layers.values())
    assert sum(comfy.model_management.module_size(part) for part in layers.values()) < 0.45 * before


@pytest.mark.parametrize("name", PACKINGS)
def test_native_products_are_near(files, formats, monkeypatch, parts, name):
    """As on a card that multiplies every format: comfy-kitchen's plain PyTorch does it here."""
    from sana_nodes.host.comfyui import packed

    if PACKINGS[name].format not in formats:
        pytest.skip("this ComfyUI has no packed layers of this format")
    whole = image("sprint", load(files("sprint", name)), parts)
    monkeypatch.setattr(packed, "_natively", lambda *_: True)
    model = load(files("sprint", name))
    native = image("sprint", model, parts)
    assert 1e-6 < (native - whole).square().mean().sqrt() < 0.05
    asked = load(files("sprint", name), products="full precision")
    assert drawing.difference(image("sprint", asked, parts), whole) < 1e-5


def test_large_inputs_are_not_clipped_in_float8(files, needs_nvfp4, monkeypatch):
    from sana_nodes.host.comfyui import packed

    monkeypatch.setattr(packed, "_natively", lambda *_: True)
    layer = packed_layers(load(files("sprint", "fp8")))["transformer_blocks.0.attn1.to_q"]
    x = torch.randn(2, 5, 64) * 5000
    expected = torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
    assert (layer(x) - expected).norm() / expected.norm() < 0.06


def test_a_file_can_ask_for_full_precision(files, needs_nvfp4, monkeypatch, home):
    from sana_nodes.host.comfyui import packed

    tensors = load_file(files("sprint", "fp8"))
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'), dtype=torch.uint8)
    path = home / "models" / "diffusion_models" / "asked.safetensors"
    layer = "transformer_blocks.0.attn1.to_q"
    save_file({**tensors, f"{layer}.comfy_quant": mark}, path)
    path.with_suffix(".json").write_text(files("sprint", "fp8").with_suffix(".json").read_text())
    monkeypatch.setattr(packed, "_natively", lambda *_: True)
    layers = packed_layers(load(path))
    assert layers[layer]._full_precision_mm and not layers["transformer_blocks.1.attn1.to_q"]._full_precision_mm


@pytest.mark.parametrize("name", ["int8", "nvfp4"])
def test_a_lora_changes_packed_weights(files, formats, home, parts, name):
    if PACKINGS[name].format not in formats:
        pytest.skip("this ComfyUI has no packed layers of this format")
    path = home / "models" / "loras" / "packed.safetensors"
    tiny.write_lora(path)
    tensors = load_file(path)
    tensors["lora_unet_transformer_blocks_0_ff_conv_inverted.lora_down.weight"] = torch.randn(4, 64, 1, 1) * 0.3
    tensors["lora_unet_transformer_blocks_0_ff_conv_inverted.lora_up.weight"] = torch.randn(320, 4, 1, 1) * 0.3
    save_file(tensors, path)
    model, floating = load(files("sprint", name)), load(files("sprint", name), weight_dtype="fp32")
    found = [
        image("sprint", drawing.call("SanaLoadLora", model=each, lora_name=path.name)[0], parts)
        for each in (model, floating)
    ]
    plain = image("sprint", model, parts)
    lost = (found[0] - found[1]).square().mean().sqrt()  # the sum is quantised again
    assert lost < 0.25 * (found[1] - plain).square().mean().sqrt()
    assert drawing.difference(image("sprint", model, parts), plain) < drawing.ROUNDING, "the LoRA was not taken off"


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("kind", MAKERS)
def test_model_save_writes_them_back(files, formats, home, kind, name):
    if PACKINGS[name].format not in formats:
        pytest.skip("this ComfyUI has no packed layers of this format")
    path = files(kind, name)
    core_nodes.one("ModelSave", model=load(path), filename_prefix=f"packed-{kind}-{name}")
    (saved,) = (home / "output").glob(f"packed-{kind}-{name}_*.safetensors")
    before, after = load_file(path), load_file(saved)
    assert before.keys() == {key.removeprefix("model.diffusion_model.") for key in after} - {"modelspec"}
    marks = [key for key in before if key.endswith("comfy_quant")]
    for key, value in before.items():
        other = after[f"model.diffusion_model.{key}"]
        if key in marks:
            assert json.loads(bytes(value.tolist())) == json.loads(bytes(other.tolist())), key
        elif value.dtype.itemsize == 1:
            assert torch.equal(value.view(torch.uint8), other.view(torch.uint8)), key
        else:
            assert torch.equal(value.float(), other.float()), key
    saved.rename(path.with_name("saved.safetensors"))
    path.with_name("saved.json").write_text(path.with_suffix(".json").read_text())
    assert packed_layers(load(path.with_name("saved.safetensors"))).keys() == packed_layers(load(path)).keys()


def test_merging_says_what_to_do(files, needs_nvfp4):
    model = load(files("sprint", "nvfp4"))
    with pytest.raises(
        ValueError, match="are quantised, and ComfyUI cannot merge those: load it with weight_dtype bf16"
    ):
        core_nodes.one("ModelMergeSimple", model1=model, model2=load(files("sprint", "nvfp4")), ratio=0.5)


@pytest.mark.parametrize("form", ["float8_e4m3fn", "int8_tensorwise_rows", "nvfp4", "scaled fp8"])
def test_gemma_stays_packed(formats, home, host, form):
    folder = home / "models" / "text_encoders" / f"packed-{form}"
    network = tiny.text_encoder()
    network.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    tensors, _ = quantising.quantised(weights, form)
    save_file(tensors, file)
    clips = [
        drawing.call("SanaLoadTextEncoder", encoder_name=folder.name, weight_dtype=dtype)[0]
        for dtype in ("default", "fp32")
    ]
    states = [drawing.call("SanaEncodePrompt", clip=clip, text=PROMPT)[0][0][0] for clip in clips]
    assert (states[0] - states[1]).abs().max() < 1e-4 * states[1].abs().max()
    from sana_nodes.host.comfyui.packed import Packed

    count = [sum(isinstance(part, Packed) for part in clip.cond_stage_model.gemma.modules()) for clip in clips]
    known = form.removesuffix("_rows") in formats or (form == "scaled fp8" and formats)
    assert count == [3 * 7 if known else 0, 0]


def test_offloaded_layers_give_the_same(files, needs_nvfp4, parts):
    """As where memory is short: every layer is cast at each use."""
    model = load(files("sprint", "nvfp4"))
    whole = image("sprint", model, parts)
    for part in packed_layers(model).values():
        part.comfy_cast_weights = True
    assert drawing.difference(image("sprint", model, parts), whole) < 1e-5


def test_a_convolution_along_time_in_steps(files, needs_nvfp4, monkeypatch):
    from sana_nodes.host.comfyui import packed

    layer = packed_layers(load(files("video", "nvfp4")))["transformer_blocks.0.ff.conv_temp"]
    x = torch.randn(2, 64, 7, 6)
    kernel = layer.weight.dequantize().reshape(layer.floating_shape)
    expected = torch.nn.functional.conv2d(x, kernel, padding=(1, 0))
    for tokens in (6, 18, 4096):
        monkeypatch.setattr(packed, "tokens_of_step", lambda device, tokens=tokens: tokens)
        assert (layer(x) - expected).abs().max() < 1e-5
