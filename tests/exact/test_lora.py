"""LoRAs: diffusers' own result, every naming, stacking, and weights that come back bit for bit."""

from __future__ import annotations

import json
import logging

import drawing
import filming
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

peft = pytest.importorskip("peft", reason="peft, which diffusers' LoRAs need, is not installed: pip install peft")

PROMPT = "a red ring on the left of a blue background"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "linear_1", "conv_inverted", "conv_point", "proj_out"]


def adapted(seed: int, settings: dict | None = None, **changes):
    """The random transformer of the fixtures with a random LoRA that PEFT put on it."""
    network = tiny.transformer(**changes)
    torch.manual_seed(seed)
    given = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": False, **(settings or {})}
    network.add_adapter(peft.LoraConfig(**given))
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(0.4)
    return network.eval()


def written(folder, seed: int = 0, settings: dict | None = None, name: str = "peft.safetensors", **changes):
    """The file that diffusers' save_lora_weights writes, metadata and all."""
    from diffusers import SanaSprintPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    network = adapted(seed, settings, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    SanaSprintPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(network),
        weight_name=name,
        **_collate_lora_metadata({"transformer": network}),
    )
    return folder / name


@pytest.fixture
def loras(home):
    return home / "models" / "loras"


@pytest.fixture
def parts(host):
    return drawing.call("SanaLoadPipeline", pipeline="tiny")


def with_lora(parts, name: str, strength: float = 1.0):
    return drawing.call("SanaLoadLora", model=parts[0], lora_name=name, strength=strength)[0], *parts[1:]


def fused(reference, *files, strengths=(1.0,)):
    """diffusers' picture with its own LoRAs fused into the weights."""
    from diffusers import SanaSprintPipeline

    maker = SanaSprintPipeline(**{**reference.components, "transformer": tiny.transformer()})
    maker.set_progress_bar_config(disable=True)
    names = [f"lora{i}" for i, _ in enumerate(files)]
    for name, file in zip(names, files):
        maker.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    maker.set_adapters(names, list(strengths))
    maker.fuse_lora(adapter_names=names)
    return drawing.theirs(maker, PROMPT)


SETTINGS = {
    "alpha": {},
    "pattern": {"alpha_pattern": {"attn1.to_q": 2}, "rank_pattern": {"to_v": 7}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True, "target_modules": ["to_q", "to_v", "conv_point"]},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_at_strength_1_it_is_the_one_that_diffusers_fused(parts, reference, loras, kind):
    file = written(loras, 1, SETTINGS[kind], f"{kind}.safetensors")
    mine = drawing.ours(with_lora(parts, file.name), PROMPT)
    assert drawing.difference(mine, fused(reference, file)) < 1e-4
    assert (mine - drawing.ours(parts, PROMPT)).abs().max() > 1e-2


def test_at_strength_0_it_is_none_and_in_between_it_is_in_between(parts, reference, loras):
    file = written(loras)
    mine = drawing.ours(with_lora(parts, file.name, 0.0), PROMPT)
    assert drawing.difference(mine, drawing.ours(parts, PROMPT)) < drawing.ROUNDING
    for strength in (0.3, -0.5):
        mine = drawing.ours(with_lora(parts, file.name, strength), PROMPT)
        assert drawing.difference(mine, fused(reference, file, strengths=[strength])) < 1e-4


def test_two_stack_in_either_order(parts, reference, loras):
    files = written(loras), written(loras, 5, name="second.safetensors")
    for order, strengths in ((files, (1.0, 0.5)), (files[::-1], (0.5, 1.0))):
        stacked = parts
        for file, strength in zip(order, strengths):
            stacked = with_lora(stacked, file.name, strength)
        expected = fused(reference, *files, strengths=(1.0, 0.5))
        assert drawing.difference(drawing.ours(stacked, PROMPT), expected) < 1e-4


@pytest.mark.parametrize("dtype", ["default", "bf16"])
def test_taking_it_off_restores_every_weight_bit_for_bit(host, reference, loras, dtype):
    file = written(loras)
    parts = drawing.call("SanaLoadPipeline", pipeline="tiny", weight_dtype=dtype)
    before = {name: value.clone() for name, value in drawing.network_of(parts[0]).state_dict().items()}
    image = drawing.ours(parts, PROMPT)
    assert drawing.difference(drawing.ours(with_lora(parts, file.name), PROMPT), image) > 1e-2
    assert drawing.difference(drawing.ours(parts, PROMPT), image) < drawing.ROUNDING
    after = drawing.network_of(parts[0]).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def kohya(file, prefix: str, flat: bool) -> dict:
    """diffusers' file with kohya's names for its parts and an alpha for each layer."""
    tensors = {}
    for key, value in load_file(file).items():
        layer, part = key.removeprefix("transformer.").rsplit(".lora_", 1)
        layer = prefix + (layer.replace(".", "_") if flat else layer)
        tensors[f"{layer}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value.contiguous()
        tensors[f"{layer}.alpha"] = torch.tensor(8.0)
    return tensors


NAMINGS = {
    "kohya": ("lora_unet_", True),
    "OneTrainer": ("lora_transformer_", True),
    "LyCORIS": ("lycoris_", True),
    "ComfyUI": ("diffusion_model.", False),
    "bare": ("", False),
    "PEFT": ("base_model.model.transformer.", False),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_the_same_lora(parts, loras, naming):
    file = written(loras)
    save_file(kohya(file, *NAMINGS[naming]), loras / f"{naming}.safetensors")
    named = drawing.ours(with_lora(parts, f"{naming}.safetensors"), PROMPT)
    assert drawing.difference(named, drawing.ours(with_lora(parts, file.name), PROMPT)) < drawing.ROUNDING


def test_pefts_own_folder_says_its_alpha_beside_the_file(parts, loras):
    file = written(loras)
    folder = loras / "peft-folder"
    folder.mkdir(exist_ok=True)
    tensors = {key.replace("transformer.", "base_model.model.", 1): value for key, value in load_file(file).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    beside = drawing.ours(with_lora(parts, "peft-folder/adapter_model.safetensors"), PROMPT)
    assert drawing.difference(beside, drawing.ours(with_lora(parts, file.name), PROMPT)) < drawing.ROUNDING


def test_strays_are_counted_and_named(parts, loras, caplog):
    tensors = dict(load_file(written(loras)))
    tensors["lora_te1_layers_0_mlp_up_proj.lora_up.weight"] = torch.zeros(4, 4)
    tensors["transformer.transformer_blocks.77.attn1.to_q.lora_A.weight"] = torch.zeros(4, 64)
    save_file(tensors, loras / "strays.safetensors")
    with caplog.at_level(logging.WARNING):
        with_lora(parts, "strays.safetensors")
    assert "2 keys match no layer" in caplog.text and "transformer_blocks.77" in caplog.text
    assert "1 of them for the text encoder" in caplog.text


def test_files_that_do_not_fit_say_why(parts, host, loras):
    def said(tensors):
        save_file(tensors, loras / "wrong.safetensors")
        with pytest.raises(ValueError) as error:
            with_lora(parts, "wrong.safetensors")
        return str(error.value)

    good = load_file(written(loras))
    elsewhere = {key.replace("transformer_blocks", "double_blocks"): value for key, value in good.items()}
    elsewhere = {key: value for key, value in elsewhere.items() if "double_blocks" in key}
    assert "none of its" in said(elsewhere) and "made for another model" in said(elsewhere)
    wide = load_file(written(loras, name="wide.safetensors", num_attention_heads=3))
    assert "as a matrix of 96 x 48 (rank 4), and this model's is 64 x 48: it was made for another size" in said(wide)
    torn = {key: value for key, value in good.items() if not key.endswith("blocks.1.attn1.to_q.lora_B.weight")}
    assert "transformer_blocks.1.attn1.to_q lacks its lora_up" in said(torn)
    assert "is a SANA-Sprint transformer, not a LoRA" in said(tiny.transformer().state_dict())
    stranger = type("Patcher", (), {"model": type("Flux", (), {})()})()
    with pytest.raises(ValueError, match=r"this MODEL \(\w+\) is not SANA: load one"):
        drawing.call("SanaLoadLora", model=stranger, lora_name="peft.safetensors")
    with pytest.raises(ValueError, match="strength is nan"):
        with_lora(parts, "peft.safetensors", float("nan"))
    with pytest.raises(FileNotFoundError, match="no LoRA called 'absent'"):
        with_lora(parts, "absent")


def loha(rank: int = 3) -> dict:
    generator = torch.Generator().manual_seed(0)
    name = "lycoris_transformer_blocks_1_attn2_to_v"
    shapes = {"hada_w1_a": (64, rank), "hada_w1_b": (rank, 64), "hada_w2_a": (64, rank), "hada_w2_b": (rank, 64)}
    return {f"{name}.{key}": torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def test_other_kinds_work_in_comfyui_and_are_refused_without(parts, host, loras):
    save_file(loha(), loras / "loha.safetensors")
    if host.name == "embedded":
        with pytest.raises(ValueError, match="hada_w1_a, which is unsupported without ComfyUI"):
            with_lora(parts, "loha.safetensors")
    else:
        changed = with_lora(parts, "loha.safetensors")
        assert (drawing.ours(changed, PROMPT) - drawing.ours(parts, PROMPT)).abs().max() > 1e-3


def test_a_video_model_takes_loras_too(host, video_references, loras):
    tiny.write_lora(loras / "video.safetensors")
    parts = drawing.call("SanaLoadPipeline", pipeline="tiny-video")
    plain = filming.ours(parts)
    assert (filming.ours(with_lora(parts, "video.safetensors")) - plain).abs().max() > 1e-3
    assert drawing.difference(filming.ours(parts), plain) < drawing.ROUNDING


@pytest.mark.comfyui
@pytest.mark.parametrize("naming", ["kohya", "ComfyUI"])
def test_core_lora_loader_where_its_key_rules_allow(parts, host, loras, naming):
    if host.name == "embedded":
        pytest.skip("LoraLoaderModelOnly is ComfyUI's own")
    file = written(loras)
    save_file(kohya(file, *NAMINGS[naming]), loras / f"{naming}.safetensors")
    given = {"model": parts[0], "lora_name": f"{naming}.safetensors", "strength_model": 0.8}
    theirs = drawing.ours((drawing.core("LoraLoaderModelOnly", host, **given)[0], *parts[1:]), PROMPT)
    assert drawing.difference(theirs, drawing.ours(with_lora(parts, file.name, 0.8), PROMPT)) < drawing.ROUNDING
