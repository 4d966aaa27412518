"""Damage weight files of every kind: header bytes, cuts, sizes, shapes, keys, dtypes, pickles, shards and names."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import tiny
import torch
from fuzz_case import Case, damaged_bytes, odd_tensors, parts, write
from fuzz_loras import NAMINGS
from safetensors.torch import save_file
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.files import folders
from sana_nodes.model_loaders.lora import load_lora
from sana_nodes.model_loaders.text_encoder import load_text_encoder
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae


def with_tokenizer(path: Path):
    return load_text_encoder(path, tiny.DEMO / "tokenizer")


LOADERS: dict[str, Callable] = {
    "image": load_transformer,
    "sprint": load_transformer,
    "video": load_transformer,
    "control": load_controlnet,
    "dc_ae": load_vae,
    "wan": load_vae,
    "gemma": with_tokenizer,
}
"""The loader of each sample that loads without its config.json."""


def one_of(case: Case) -> tuple[dict, Callable]:
    """The tensors of a valid model or LoRA, and its loader."""
    name = case.rng.choice([*LOADERS, "lora"])
    if name == "lora":
        return NAMINGS[case.rng.choice(list(NAMINGS))](), lambda path: load_lora(path, case.samples.lora_shapes)
    return case.samples.tensors[name], LOADERS[name]


def a_file(case: Case) -> tuple[Path, Callable]:
    """A valid safetensors file and its loader."""
    tensors, load = one_of(case)
    return case.weights(tensors, metadata={"format": "pt"}), load


def header_bytes(case: Case):
    path, load = a_file(case)
    data = bytearray(path.read_bytes())
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(case.rng.randrange(1, 9)):
        data[case.rng.randrange(end)] = case.rng.randrange(256)
    path.write_bytes(data)
    return lambda: load(path)


def cut(case: Case):
    path, load = a_file(case)
    data = path.read_bytes()
    path.write_bytes(data[: case.rng.choice([0, 1, 7, 8, 9, case.rng.randrange(len(data))])])
    return lambda: load(path)


def huge(case: Case):
    path, load = a_file(case)
    header, body = parts(path)
    much = case.rng.choice([2**31, 2**40, 2**62, 2**63, 2**64 - 1, 10**30, -1])
    name = case.rng.choice([key for key in header if key != "__metadata__"])
    where = case.rng.randrange(4)
    if where == 0:
        write(path, header, body, length=much)
        return lambda: load(path)
    if where == 1:
        header[name]["shape"] = [much, *header[name]["shape"][1:]]
    elif where == 2:
        header[name]["data_offsets"] = [0, much]
    else:
        header[name]["shape"] = [1] * case.rng.choice([70, 5000])
    write(path, header, body)
    return lambda: load(path)


def shapes(case: Case):
    path, load = a_file(case)
    header, body = parts(path)
    names = [key for key in header if key != "__metadata__"]
    one, other = case.rng.sample(names, 2)
    if case.rng.random() < 0.5:
        header[one]["shape"], header[other]["shape"] = header[other]["shape"], header[one]["shape"]
    elif case.rng.random() < 0.5:
        header[one]["shape"] = list(reversed(header[one]["shape"]))
    else:
        header[one], header[other] = header[other], header[one]
    write(path, header, body)
    return lambda: load(path)


def tensors(case: Case):
    whole, load = one_of(case)
    path = case.weights(odd_tensors(case.rng, whole))
    return lambda: load(path)


def keys(case: Case):
    path, load = a_file(case)
    header, body = parts(path)
    name = case.rng.choice([key for key in header if key != "__metadata__"])
    entry = header.pop(name)
    strange = ["", name + "x", name.upper(), "../" + name, "__metadata__", "\ud800", "a" * 100_000]
    text = json.dumps({**header, case.rng.choice([*strange, name.replace("0", "00")]): entry})
    if case.rng.random() < 0.3:  # the same key twice
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}, {json.dumps(name)}: {json.dumps(entry)}}}"
    write(path, text.encode("utf-8", "surrogatepass"), body)
    return lambda: load(path)


def dtypes(case: Case):
    path, load = a_file(case)
    header, body = parts(path)
    name = case.rng.choice([key for key in header if key != "__metadata__"])
    header[name]["dtype"] = case.rng.choice(["I8", "U8", "BOOL", "F64", "F8_E4M3", "BF16", "X9", "", None, 5])
    write(path, header, body)
    return lambda: load(path)


class _Runs:
    """A pickle that would make a file if it were let."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def pickles(case: Case):
    path = case.folder / "model.pth"
    whole, load = one_of(case)
    content = case.rng.choice(
        [
            {"state_dict": {**whole, "x": _Runs(case.canary)}},
            _Runs(case.canary),
            {"state_dict": {"a": 1, "b": [torch.zeros(1)], 3: torch.zeros(2)}},
            {"state_dict": list(whole.values())[:2]},
            {"state_dict": {key: None for key in whole}},
            [1, 2],
            {"model": {"state_dict": dict(whole)}},
        ]
    )
    if case.rng.random() < 0.5:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content) if case.rng.random() < 0.7 else b"\x80\x02cos\nsystem\n(S'x'\ntR.")
    if case.rng.random() < 0.4:
        path.write_bytes(damaged_bytes(case.rng, path.read_bytes()))
    return lambda: load(path)


def shards_elsewhere(case: Case):
    """An index file whose shards are not files of its folder."""
    whole, load = one_of(case)
    secret = case.folder.parent / "secret.safetensors"
    save_file(whole, secret)
    names = ["../secret.safetensors", str(secret), "a/../../secret.safetensors", "..", "", ".", "x\0y", 5, None]
    names += [["a"], {}, "missing.safetensors", "..\\secret.safetensors", "C:secret.safetensors"]
    table = {key: case.rng.choice(names) for key in whole}
    odd = [{"weight_map": table}, {"weight_map": []}, {"weight_map": "x"}, [], {}, {"weight_map": None}]
    index = json.dumps(case.rng.choice(odd))
    (case.folder / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    (case.folder / "model.safetensors.index.json").write_text(index)
    (case.folder / "config.json").write_text("{}")

    def run():
        loaded = load(case.folder)
        raise AssertionError(f"it read {secret}: {loaded}")

    return run


def names(case: Case):
    """Names of models in workflows: nothing outside the roots may be found."""
    root = case.folder / "models"
    root.mkdir()
    (root / "inside.safetensors").touch()
    outside = case.folder / "outside.safetensors"
    outside.touch()
    tried = ["../outside.safetensors", str(outside), "a/../../outside.safetensors", "..", "../", "/", "x\0y"]
    tried += ["\\..\\outside.safetensors", "..\\outside.safetensors", "a" * 5000, "", ".", "./../outside.safetensors"]
    name = case.rng.choice([*tried, "inside.safetensors/../../x", None, 5, ["a"]])
    case.named.append(repr(name)[:100])

    def run():
        found = folders.find_model([root], name, "model")
        assert found.resolve().is_relative_to(root.resolve()), f"{name!r} led to {found}"

    return run


WAYS = (header_bytes, cut, huge, shapes, tensors, keys, dtypes, pickles, shards_elsewhere, names)
