"""Damage LoRA files: their matrices, alphas, names, header and the adapter_config.json beside them."""

from __future__ import annotations

import json
import random

import torch
from fuzz_case import Case, damage_json, damaged_bytes, odd_entries, odd_name, odd_shape, odd_tensors
from sana_nodes.model_loaders.lora import METADATA_KEY, load_lora

LAYERS = [f"transformer_blocks.{block}.{layer}" for block in range(2) for layer in ("attn1.to_q", "attn2.to_out.0")]
RANK, WIDTH = 4, 64


def _plain(down: str, up: str, prefix: str, flat: bool, alpha: str = "", magnitude: str = "") -> dict:
    tensors = {}
    for layer in LAYERS:
        name = prefix + (layer.replace(".", "_") if flat else layer)
        tensors[f"{name}.{down}"] = torch.ones(RANK, WIDTH) / 8
        tensors[f"{name}.{up}"] = torch.ones(WIDTH, RANK) / 8
        if alpha:
            tensors[f"{name}.{alpha}"] = torch.tensor(2.0)
        if magnitude:
            tensors[f"{name}.{magnitude}"] = torch.ones(WIDTH)
    return tensors


def peft() -> dict:
    return _plain("lora_A.weight", "lora_B.weight", "base_model.model.", False)


def diffusers() -> dict:
    return _plain("lora_A.weight", "lora_B.weight", "transformer.", False)


def dora() -> dict:
    return _plain("lora_A.default.weight", "lora_B.default.weight", "", False, magnitude="lora_magnitude_vector.weight")


def kohya() -> dict:
    return _plain("lora_down.weight", "lora_up.weight", "lora_unet_", True, "alpha")


def onetrainer() -> dict:
    return _plain("lora_down.weight", "lora_up.weight", "lora_transformer_", True, "alpha", "dora_scale")


def lokr() -> dict:
    made = {"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8), "alpha": ()}
    return {f"lycoris_{a.replace('.', '_')}.{part}": torch.ones(made[part]) for a in LAYERS for part in made}


def loha() -> dict:
    made = {"hada_w1_a": (WIDTH, 2), "hada_w1_b": (2, WIDTH), "hada_w2_a": (WIDTH, 2), "hada_w2_b": (2, WIDTH)}
    return {f"lycoris_{a.replace('.', '_')}.{part}": torch.ones(made[part]) for a in LAYERS for part in made}


NAMINGS = {f.__name__: f for f in (peft, diffusers, dora, kohya, onetrainer, lokr, loha)}
PATTERNS = ["(.*)*x", "(a+)+$", ".*to_q", r"transformer_blocks\.\d+\.attn1\.to_q", "to_q|to_k", "(" * 200, "[^x]+"]
PATTERNS += [".*" * 120, "x" * 5000, "(?=a)", "a{9}", "\\", "*", "(to_q|to_out.0)", "^attn1.to_q$", "", "é+", "[0-9]*"]
NUMBERS = [4, 0, -1, 1e9, 1e300, float("nan"), True, "4", None, [1, 2], {}]


def _one(case: Case) -> dict:
    return NAMINGS[case.rng.choice(list(NAMINGS))]()


def _loader(case: Case, path):
    return lambda: load_lora(path, case.samples.lora_shapes)


def alpha(case: Case):
    """Alphas of odd shapes, types and values."""
    tensors = kohya() if case.rng.random() < 0.7 else lokr()
    for key in case.rng.sample([key for key in tensors if key.endswith("alpha")], 2):
        value = case.rng.choice([0.0, -1.0, 1e38, float("nan"), float("inf"), 3])
        dtype = case.rng.choice([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16])
        dtype = torch.float32 if value != value or abs(value) > 100 else dtype
        tensors[key] = torch.full(case.rng.choice([(), (), (1,), (2,), (0,), (1, 1, 1)]), value).to(dtype)
    return _loader(case, case.weights(tensors))


def matrices(case: Case):
    """Matrices of other ranks, shapes, numbers of dimensions and dtypes, missing ones, magnitudes of other sizes."""
    tensors = _one(case)
    ranks = [key for key in tensors if tensors[key].ndim]
    for key in case.rng.sample(ranks, case.rng.randrange(1, 3)):
        how, value = case.rng.randrange(5), tensors[key]
        if how == 0:
            tensors.pop(key)
        elif how == 1:
            tensors[key] = value.to(case.rng.choice([torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64]))
        elif how == 2:
            more = case.rng.choice([(1, 1), (1, 3), (2,), (3, 3), (1, 0)])
            tensors[key] = value.reshape(*value.shape, *(1 for _ in more)).expand(*value.shape, *more)
        elif how == 3:
            tensors[key] = value[: case.rng.choice([0, 1, 2, 3])]
        else:
            tensors[key] = torch.ones(odd_shape(case.rng, tuple(value.shape)))
    return _loader(case, case.weights(tensors))


def _config(rng: random.Random) -> dict:
    """What PEFT writes of a LoRA, with patterns."""
    table = {"lora_alpha": rng.choice(NUMBERS), "r": 4, "use_rslora": rng.choice([True, False, "x"])}
    for key in ("alpha_pattern", "rank_pattern"):
        count = rng.choice([1, 3, 2000])
        table[key] = {f"{rng.choice(PATTERNS)}{n if n > 3 else ''}": rng.choice(NUMBERS[:4]) for n in range(count)}
    return odd_entries(rng, table, ("alpha_pattern", "lora_alpha")) if rng.random() < 0.5 else table


def header(case: Case):
    """The metadata that diffusers writes: patterns that would freeze, odd numbers, texts that are no JSON."""
    text = json.dumps({f"transformer.{key}": value for key, value in _config(case.rng).items()})
    if case.rng.random() < 0.25:
        text = case.rng.choice(["", "[]", "{", "[" * 20_000 + "]" * 20_000, '{"lora_alpha": 1e999}', "null", text[:40]])
    tensors = case.rng.choice([peft, diffusers, dora])()
    return _loader(case, case.weights(tensors, metadata={METADATA_KEY: text, "format": "pt"}))


def adapter_config(case: Case):
    """An adapter_config.json beside the file, alone or with another LoRA."""
    path = case.weights(peft(), case.rng.choice(["adapter_model.safetensors", "mine.safetensors"]))
    file = case.folder / "adapter_config.json"
    file.write_text(json.dumps(_config(case.rng)))
    if case.rng.random() < 0.5:
        damage_json(case, file, ("alpha_pattern", "rank_pattern", "lora_alpha", "use_rslora", "target_modules"))
    if case.rng.random() < 0.2:
        case.weights(peft(), "other.safetensors")
    return _loader(case, path)


def names(case: Case):
    """Keys of other layers and other trainers, prefixes without end, two keys that mean the same layer."""
    tensors = _one(case)
    for key in case.rng.sample(list(tensors), 2):
        odd = [odd_name(case.rng, key), "lora_unet_" * 2000 + key, "transformer." * 3 + key, f"text_encoder.{key}"]
        odd += [key.replace("to_q", "to_z"), key + ".default.weight", ".lora_A.", ".lora_A.weight", "lora_unet_.alpha"]
        tensors[case.rng.choice(odd)] = tensors.pop(key) if case.rng.random() < 0.7 else tensors[key].clone()
    if case.rng.random() < 0.3:
        tensors |= _one(case)
    return _loader(case, case.weights(tensors))


def tensors(case: Case):
    return _loader(case, case.weights(odd_tensors(case.rng, _one(case))))


def file_bytes(case: Case):
    path = case.weights(_one(case))
    path.write_bytes(damaged_bytes(case.rng, path.read_bytes()))
    return _loader(case, path)


WAYS = (alpha, matrices, header, adapter_config, names, tensors, file_bytes)
