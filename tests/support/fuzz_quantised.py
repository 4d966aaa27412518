"""Damage quantised and scaled files: marks, metadata, scales, packed weights, formats that are not supported."""

from __future__ import annotations

import json

import layouts
import quantising
import tiny
import torch
from fuzz_case import ODD_TEXTS, Case, damaged_bytes, odd_entries, odd_tensors
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.quantised.formats import BLOCK, FORMATS, MARK, METADATA
from sana_nodes.model_loaders.text_encoder import load_text_encoder
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae

LOADERS = {
    **dict.fromkeys(("image", "sprint", "video"), load_transformer),
    "control": load_controlnet,
    "dc_ae": load_vae,
    "gemma": lambda path: load_text_encoder(path, tiny.DEMO / "tokenizer"),
}
HOWS = ("scaled fp8", "mixed", "float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_tensorwise_rows", "nvfp4")
OTHERS = (
    "mxfp8",
    "asym_w4a8_int8",
    "nvfp4",
    "float8_e4m3fn",
    "int8_blockwise",
    "bnb",
    "",
    "x" * 5000,
    "NVFP4",
    "int8_tensorwise",
)


def _matrices(tensors: dict) -> list[str]:
    return [key for key, value in tensors.items() if value.ndim == 2 and key.endswith(".weight")]


def packed(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight with the parts of nvfp4, of the right shapes; the values mean nothing."""
    rows, columns = weight.shape
    scales = -(-rows // 128) * 128 * -(-columns // (4 * BLOCK)) * 4
    mark = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    return {
        "weight": torch.full((rows, columns // 2), 0x21, dtype=torch.uint8),
        "weight_scale": torch.full((scales // 4, 4), 56, dtype=torch.uint8),
        "weight_scale_2": torch.tensor(0.01),
        MARK: mark,
    }


def _quantised(tensors: dict, how: str) -> dict:
    if how != "nvfp4":
        return quantising.quantised(tensors, how)[0]
    made = dict(tensors)
    for key in _matrices(tensors):
        layer = key.removesuffix(".weight")
        made |= {f"{layer}.{part}": value for part, value in packed(tensors[key]).items()}
    return made


def _file(case: Case) -> tuple[str, dict]:
    """A sample's name and its tensors in one of the formats."""
    name = case.rng.choice(list(LOADERS))
    return name, _quantised(case.samples.tensors[name], case.rng.choice(HOWS))


def _loader(case: Case, name: str, tensors: dict, metadata=None):
    """The loader of a file with its right config beside it, which Gemma needs."""
    path = case.weights(tensors, "model.safetensors", metadata)
    (case.folder / "model.json").write_text(json.dumps(case.samples.config(name)))
    return lambda: LOADERS[name](path)


def _bytes(text: str | bytes) -> torch.Tensor:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return torch.tensor(list(data), dtype=torch.uint8)


def marks(case: Case):
    """comfy_quant: another format, odd options, text that is no JSON, another dtype or shape."""
    name, tensors = _file(case)
    layers = [key.removesuffix(".weight") for key in _matrices(tensors)]
    for layer in case.rng.sample(layers, 2):
        options = {"format": case.rng.choice([*FORMATS, *OTHERS]), "convrot": case.rng.choice([False, True, [], {}])}
        options = odd_entries(case.rng, options, ("format", "params")) if case.rng.random() < 0.5 else options
        mark = _bytes(case.rng.choice([json.dumps(options)] * 6 + [text[:5000] for text in ODD_TEXTS]))
        if case.rng.random() < 0.2:
            mark = case.rng.choice(
                [mark.float(), mark.to(torch.int16), mark[:0], mark[None], torch.tensor(5), mark[:3]]
            )
        tensors[f"{layer}.{MARK}"] = mark
    return _loader(case, name, tensors)


def metadata(case: Case):
    """The description of all layers in the header."""
    name, tensors = _file(case)
    layers = {
        key.removesuffix(".weight"): {"format": case.rng.choice([*FORMATS, *OTHERS])} for key in _matrices(tensors)
    }
    if case.rng.random() < 0.5:
        layers = {layer: {"format": "float8_e4m3fn"} for layer in layers}
    table = {"format_version": "1.0", "layers": odd_entries(case.rng, layers)}
    table = odd_entries(case.rng, table, ("layers",) * 3) if case.rng.random() < 0.3 else table
    text = json.dumps(table) if case.rng.random() < 0.8 else case.rng.choice(ODD_TEXTS)
    if case.rng.random() < 0.5:
        tensors = {key: value for key, value in tensors.items() if not key.endswith(MARK)}
    return _loader(case, name, tensors, {METADATA: text, "format": "pt"})


SCALES = ("scale_weight", "weight_scale", "weight_scale_2", "input_scale", "scale_input", "pre_quant_scale", "SCB")


def scales(case: Case):
    """Scales of other shapes, dtypes and values, missing, doubled, or of layers that are none."""
    name, tensors = _file(case)
    there = [key for key in tensors if key.endswith(SCALES)]
    for key in case.rng.sample(there, min(len(there), 2)):
        how, value = case.rng.randrange(4), tensors.pop(key)
        if how == 0:
            size = case.rng.choice([(), (1,), (2,), (0,), (64,), (1, 64), (64, 1), (3, 3), (128, 4), (1,) * 7])
            tensors[key] = torch.ones(size)
        elif how == 1:
            tensors[key] = value.to(case.rng.choice([torch.int8, torch.bool, torch.float64, torch.float8_e4m3fn]))
        elif how == 2:
            tensors[key] = torch.full(value.shape, case.rng.choice([0.0, float("nan"), float("inf"), -1.0]))
    if case.rng.random() < 0.5:
        layer = case.rng.choice(
            [*(key.removesuffix(".weight") for key in _matrices(tensors)), "nowhere", "caption_norm"]
        )
        tensors[f"{layer}.{case.rng.choice(SCALES)}"] = torch.ones(case.rng.choice([(), (64, 1), (0,)]))
    return _loader(case, name, tensors)


def weights(case: Case):
    """Stored weights of another dtype, shape or number of dimensions than the format has."""
    name, tensors = _file(case)
    for key in case.rng.sample(_matrices(tensors), 2):
        value, how = tensors[key], case.rng.randrange(5)
        if how == 0:
            kinds = [torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float32, torch.int64, torch.bool, torch.int32]
            tensors[key] = value.float().clamp(-100, 100).to(case.rng.choice(kinds))
        elif how == 1:
            tensors[key] = value.flatten()
        elif how == 2:
            tensors[key] = value[:, : case.rng.choice([0, 1, 7, 31])]
        elif how == 3:
            tensors[key] = value[: case.rng.choice([0, 1, 33])]
        else:
            tensors[key] = torch.zeros((), dtype=value.dtype)
    return _loader(case, name, tensors)


def file_marks(case: Case):
    """scaled_fp8 of odd shapes and dtypes, under odd prefixes, or on a file that is not quantised."""
    name = case.rng.choice(list(LOADERS))
    whole = case.samples.tensors[name]
    tensors = layouts.scaled_fp8(whole) if case.rng.random() < 0.6 else dict(whole)
    tensors.pop("scaled_fp8", None)
    prefix = case.rng.choice(["", "", "model.diffusion_model.", "x."])
    odd = [
        torch.zeros(2, dtype=torch.float8_e5m2),
        torch.zeros(0),
        torch.tensor(1),
        torch.zeros(3, 3, dtype=torch.bool),
    ]
    tensors[f"{prefix}scaled_fp8"] = case.rng.choice(odd)
    return _loader(case, name, tensors)


def int8_bnb(case: Case):
    """What bitsandbytes and others write, which no loader reads."""
    name = case.rng.choice(list(LOADERS))
    tensors = dict(case.samples.tensors[name])
    for key in case.rng.sample(_matrices(tensors), 2):
        extra = ["SCB", "weight_format", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"]
        layer = key.removesuffix(".weight")
        tensors[key] = torch.zeros(tensors[key].shape, dtype=case.rng.choice([torch.int8, torch.uint8]))
        for part in case.rng.sample(extra, case.rng.randrange(3)):
            tensors[f"{layer}.{part}"] = torch.ones(case.rng.choice([(64,), (), (0,), (2, 2)]))
    return _loader(case, name, tensors)


def tensors(case: Case):
    name, whole = _file(case)
    keys = [key for key in whole if key.endswith((*SCALES, MARK))]
    return _loader(case, name, odd_tensors(case.rng, whole, case.rng.choice([keys, list(whole)]) or list(whole)))


def file_bytes(case: Case):
    name, whole = _file(case)
    run = _loader(case, name, whole)
    path = case.folder / "model.safetensors"
    path.write_bytes(damaged_bytes(case.rng, path.read_bytes()))
    return run


WAYS = (marks, metadata, scales, weights, file_marks, int8_bnb, tensors, file_bytes)
