"""Transformers written in ComfyUI's quantised formats: values, files, what is kept, what is printed."""

from __future__ import annotations

import json

import drawing
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sana_nodes import cli
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.files.open import open_checkpoint
from sana_nodes.model_loaders.quantised.formats import FORMATS, set_values
from sana_nodes.model_loaders.quantised.layers import INSTEAD, packing_of
from sana_nodes.model_loaders.quantised.packing import PACKINGS
from sana_nodes.model_loaders.quantised.writer import quantised_bytes, write_quantised
from sana_nodes.model_loaders.transformer import load_transformer

WORST = {"fp8": 1 / 16, "int8": 1 / 127, "mxfp8": 1 / 16, "nvfp4": 1 / 4}
"""The largest error of a weight over the largest magnitude that shares its scale, each with half a step to spare."""

SHAPES = [(64, 96), (16, 16), (130, 48), (5, 7), (1, 33)]


def read_back(tmp_path, weight: torch.Tensor, name: str) -> torch.Tensor:
    parts = PACKINGS[name].quantise(weight)
    mark = json.dumps({"format": PACKINGS[name].format, "shape": list(weight.shape)}).encode()
    tensors = {**parts, "comfy_quant": torch.tensor(list(mark), dtype=torch.uint8)}
    save_file({f"a.{key}": value.contiguous() for key, value in tensors.items()}, tmp_path / "a.safetensors")
    return open_checkpoint(tmp_path / "a.safetensors")["a.weight"]


def groups(weight: torch.Tensor, name: str) -> torch.Tensor:
    """The largest magnitude that shares a scale with each weight."""
    width = {"fp8": None, "int8": weight.shape[1]}.get(name, PACKINGS[name].block)
    if width is None:
        return weight.abs().amax().expand_as(weight)
    filled = torch.nn.functional.pad(weight.abs(), (0, -weight.shape[1] % width))
    largest = filled.unflatten(1, (-1, width)).amax(2, keepdim=True).expand(-1, -1, width)
    return largest.flatten(1)[:, : weight.shape[1]]


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_read_back_is_near_the_weight(tmp_path, name, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, shape[0])[:, None]
    found = read_back(tmp_path, weight, name)
    assert found.shape == shape and ((found - weight).abs() <= WORST[name] * groups(weight, name)).all()


@pytest.mark.parametrize("name", PACKINGS)
def test_zeros_stay_zeros(tmp_path, name):
    weight = torch.zeros(64, 64)
    weight[3, 40] = 1.0
    found = read_back(tmp_path, weight, name)
    assert found[3, 40] == pytest.approx(1.0, rel=0.07) and found.count_nonzero() == 1
    assert not read_back(tmp_path, torch.zeros(32, 32), name).any()


def test_four_bit_values_are_kept_and_ties_go_to_the_even_code(tmp_path):
    """With a block's largest value 6 and a tensor's largest 6 * 448, the scale of the block is 1."""
    weight = torch.zeros(16, 32)
    weight[0] = 6.0 * 448
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -6.0])
    weight[1, :16] = values
    expected = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, 1, 1, 2, 2, 4, 4, -6])
    assert torch.equal(read_back(tmp_path, weight, "nvfp4")[1, :16], expected)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
def test_comfy_kitchen_reads_the_same_values(tmp_path, name):
    kitchen = pytest.importorskip("comfy_kitchen", reason="comfy_kitchen comes with ComfyUI")
    weight = torch.randn(160, 320, generator=torch.Generator().manual_seed(1)) * 0.03
    parts = PACKINGS[name].quantise(weight)
    if name == "nvfp4":
        theirs = kitchen.dequantize_nvfp4(
            parts["weight"], parts["weight_scale_2"], parts["weight_scale"], torch.float32
        )
        own, scales = kitchen.quantize_nvfp4(weight, parts["weight_scale_2"])
    else:
        theirs = kitchen.dequantize_mxfp8(
            parts["weight"], parts["weight_scale"].view(torch.float8_e8m0fnu), torch.float32
        )
        own, scales = kitchen.quantize_mxfp8(weight)
    assert torch.allclose(read_back(tmp_path, weight, name), theirs, rtol=1e-6)
    assert torch.equal(scales.view(torch.uint8), parts["weight_scale"].view(torch.uint8))
    assert (own.view(torch.uint8) != parts["weight"].view(torch.uint8)).float().mean() < 1e-3


def written(tmp_path, network, name: str, dtype=torch.bfloat16):
    """The transformer in a file of a format, and what was said of each weight."""
    save_file(
        {key: value.to(dtype).contiguous() for key, value in network.state_dict().items()}, tmp_path / "in.safetensors"
    )
    said: list = []
    write_quantised(open_checkpoint(tmp_path / "in.safetensors"), tmp_path / "q.safetensors", name, said.append)
    (tmp_path / "q.json").write_text(json.dumps(dict(network.config)))
    return tmp_path / "q.safetensors", said


NETWORKS = {"image": tiny.image_transformer, "sprint": tiny.transformer, "video": tiny.video_transformer}


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_loads_and_keeps_what_it_should(tmp_path, kind, name):
    network = NETWORKS[kind]().to(torch.bfloat16)
    path, said = written(tmp_path, network, name)
    loaded = load_transformer(path)
    set_values(loaded.module, loaded.quantised, torch.float32)
    errors = {weight.name: weight for weight in said}
    for key, value in network.state_dict().items():
        found, weight = loaded.module.state_dict()[key], errors[key]
        if weight.format is None:
            assert torch.equal(found, value) and weight.error == 0, key
        else:
            error = ((found - value.float()).norm() / value.float().norm()).item()
            assert error == pytest.approx(weight.error, rel=1e-3) and 0 < error < {"nvfp4": 0.12}.get(name, 0.05), key
    assert loaded.quantised.keys() == {weight.name for weight in said if weight.format}
    assert path.stat().st_size > sum(weight.after for weight in said)


def test_which_layers_are_quantised():
    names = {name.split(".", 2)[-1] for name in NETWORKS["video"]().state_dict() if packing_of(name, (64, 64), "int8")}
    layers = {f"attn{n}.to_{part}.weight" for n in (1, 2) for part in ("q", "k", "v", "out.0")}
    assert names == layers | {f"ff.conv_{part}.weight" for part in ("inverted", "point", "temp")}
    assert packing_of("transformer_blocks.3.ff.conv_temp.weight", (64, 64, 3, 1), "nvfp4") == "fp8"
    assert set().union(*INSTEAD.values()) <= set(PACKINGS)
    assert {packing.format for packing in PACKINGS.values()} <= set(FORMATS)


def test_sizes_of_published_models(meta_video):
    """NVFP4 of SANA-Video 2B is at most 0.36 of its bfloat16 weights."""
    shapes = {name: tuple(value.shape) for name, value in meta_video.state_dict().items()}
    before = sum(value.numel() * 2 for value in meta_video.state_dict().values())
    share = {name: quantised_bytes(shapes, name) / before for name in PACKINGS}
    assert share["nvfp4"] < 0.36 and share["fp8"] < 0.52 and share["int8"] < 0.52 and share["mxfp8"] < 0.54


@pytest.fixture
def meta_video():
    from diffusers import SanaVideoTransformer3DModel
    from sana_nodes.model_loaders.files.build import build_empty

    return build_empty(lambda: SanaVideoTransformer3DModel(mlp_ratio=3.0, qk_norm="rms_norm_across_heads"))


@pytest.mark.parametrize("name", PACKINGS)
def test_the_command(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["quantize", str(tiny.DEMO), "--format", name]) == 0
    out = capsys.readouterr().out.splitlines()
    made = tmp_path / f"{tiny.DEMO.name}-{name}.safetensors"
    assert out[-1] == made.name and "MiB of 4.6 in bfloat16" in out[-2]
    line = next(line for line in out if line.startswith("transformer_blocks.0.attn1.to_q: "))
    assert f": {PACKINGS[name].format}, error " in line
    assert len(out) == 3 + len(load_transformer(made).quantised)
    assert sorted(file.name for file in tmp_path.iterdir()) == [made.with_suffix(".json").name, made.name]
    config = json.loads((tiny.DEMO / "transformer" / "config.json").read_text())
    assert config.items() - json.loads(made.with_suffix(".json").read_text()).items() <= {
        ("_diffusers_version", config["_diffusers_version"])
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing", "--format", "fp8"], 1, "nothing does not exist"),
        ([str(tiny.DEMO / "vae"), "--format", "fp8"], 1, "is a DC-AE, not a SANA-Sprint transformer"),
        ([str(tiny.DEMO), "--format", "fp8", "--output", "x.pth"], 2, "give the name of a .safetensors file"),
        ([str(tiny.DEMO), "--format", "fp8", "--output", "a/x.safetensors"], 2, "whose folder does not exist"),
        ([str(tiny.DEMO), "--format", "fp8", "--output", "there.safetensors"], 2, "there.safetensors exists"),
    ],
)
def test_unusable_calls(tmp_path, capsys, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").write_bytes(b"")
    assert cli.main(["quantize", *arguments]) == code
    assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["there.safetensors"]


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path):
    network = tiny.transformer()
    save_file(dict(network.state_dict()), tmp_path / "in.safetensors")

    def full(weight):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_quantised(open_checkpoint(tmp_path / "in.safetensors"), tmp_path / "q.safetensors", "fp8", full)
    assert [file.name for file in tmp_path.iterdir()] == ["in.safetensors"]


def test_from_nvlabs_naming_and_from_a_quantised_file(tmp_path):
    network = tiny.image_transformer().to(torch.bfloat16)
    path, _ = written(tmp_path, network, "int8")
    write_quantised(open_checkpoint(path), tmp_path / "again.safetensors", "int8")
    first, second = load_file(path), load_file(tmp_path / "again.safetensors")
    assert first.keys() == second.keys()
    for key, value in first.items():
        if value.dtype == torch.int8:
            assert (value.int() - second[key].int()).abs().max() <= 1, key


def test_a_file_of_float16_stays_one(tmp_path):
    path, _ = written(tmp_path, tiny.image_transformer(), "fp8", torch.float16)
    loaded = load_transformer(path)
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float16}
    assert loaded.spec.clips, "what was trained in float16 is clipped to its range"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    "shape", [[0, 64], [64], [64, 63.0], [64, 1, 1, 1, 64, 1], [1, 64], [64, 65], "64", [True, 64]]
)
def test_a_shape_that_does_not_fit_is_refused(tmp_path, shape):
    mark = json.dumps({"format": "int8_tensorwise", "shape": shape}).encode()
    tensors = {
        **PACKINGS["int8"].quantise(torch.randn(64, 64)),
        "comfy_quant": torch.tensor(list(mark), dtype=torch.uint8),
    }
    save_file({f"a.{key}": value for key, value in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UnusableFile, match="a is marked as a weight of the shape"):
        open_checkpoint(tmp_path / "a.safetensors")


LIMITS = {"fp8": 0.05, "int8": 0.03, "mxfp8": 0.05, "nvfp4": 0.2}
"""The root mean square of the difference to the demo's image, of a range of 1."""


@pytest.mark.parametrize("name", PACKINGS)
def test_the_demo_still_generates_its_image(host, home, tmp_path, reference, name):
    from sana_nodes.model_loaders.transformer import write_quantised_transformer

    file = home / "models" / "diffusion_models" / f"demo-{name}.safetensors"
    if not file.exists():
        write_quantised_transformer(tiny.DEMO / "transformer", file, name, lambda weight: None)
    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline="sana-sprint-demo")
    small = drawing.call("SanaLoadTransformer", model_name=file.name)[0]
    prompt = "a red ring on the left of a blue background"
    size = {"width": 256, "height": 256}
    whole, found = (drawing.ours((part, clip, vae), prompt, **size) for part in (model, small))
    assert 0 < (whole - found).square().mean().sqrt() < LIMITS[name]
