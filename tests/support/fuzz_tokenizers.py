"""Damage the files of a tokenizer, and the SentencePiece model inside a text encoder's file."""

from __future__ import annotations

import json

import tiny
import torch
from fuzz_case import ODD_TEXTS, Case, damage_json, damaged_bytes, replace
from fuzz_gemma import odd_pieces, odd_table
from sana_nodes.model_loaders.text_encoder import load_text_encoder

TABLE = json.loads((tiny.DEMO / "tokenizer" / "tokenizer.json").read_text())
SIDE_FILES = {
    "tokenizer_config.json": {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "model_max_length": 300,
        "auto_map": {"AutoTokenizer": ["../x.py", None]},
        "added_tokens_decoder": {"2": {"content": "<bos>"}},
        "chat_template": "{{ x }}",
    },
    "special_tokens_map.json": {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "unk_token": "<unk>"},
    "added_tokens.json": {"<bos>": 2},
}


def _folder(case: Case):
    """A Gemma-2's folder with its tokenizer in it, and that tokenizer's folder."""
    folder = case.copy(case.samples.folders["gemma"])
    return folder, folder / "tokenizer"


def json_entries(case: Case):
    """tokenizer.json with odd values, however deep."""
    folder, tokenizer = _folder(case)
    replace(tokenizer / "tokenizer.json", json.dumps(odd_table(case.rng, TABLE)))
    return lambda: load_text_encoder(folder)


def json_file(case: Case):
    """tokenizer.json with odd entries at its top, odd text, odd bytes, or as something that is no file."""
    folder, tokenizer = _folder(case)
    damage_json(case, tokenizer / "tokenizer.json")
    return lambda: load_text_encoder(folder)


def side_files(case: Case):
    """The files beside tokenizer.json, which are not read."""
    folder, tokenizer = _folder(case)
    name = case.rng.choice(list(SIDE_FILES))
    file = tokenizer / name
    replace(file, json.dumps(SIDE_FILES[name]))
    damage_json(case, file)
    return lambda: load_text_encoder(folder)


def _odd_spiece(case: Case) -> bytes:
    how = case.rng.random()
    if how < 0.45:
        return odd_pieces(case.rng)
    if how < 0.9:
        return damaged_bytes(case.rng, case.samples.spiece)
    return case.rng.choice([b"", case.samples.spiece, *(text.encode("utf-8") for text in ODD_TEXTS)])


def model_file(case: Case):
    """tokenizer.model in place of tokenizer.json."""
    folder, tokenizer = _folder(case)
    (tokenizer / "tokenizer.json").unlink()
    replace(tokenizer / "tokenizer.model", _odd_spiece(case))
    return lambda: load_text_encoder(folder)


def spiece_model(case: Case):
    """spiece_model among the weights of one file: its bytes, its dtype, its shape, its name."""
    data = torch.frombuffer(bytearray(_odd_spiece(case) or b"\0"), dtype=torch.uint8)
    how = case.rng.randrange(8)
    if how == 0:
        data = case.rng.choice([data[0], data[:0], data.reshape(1, -1), data.float(), data.to(torch.int8), data > 3])
    name = case.rng.choice(["spiece_model"] * 4 + ["model.spiece_model", "a.b.spiece_model", "spiece_model.x"])
    file = case.weights({**case.samples.tensors["gemma"], name: data})
    (case.folder / "config.json").write_text(json.dumps(case.samples.config("gemma")))
    if case.rng.random() < 0.3:
        case.copy(case.samples.folders["gemma"] / "tokenizer", "tokenizer")
    return lambda: load_text_encoder(file)


WAYS = (json_entries, json_file, side_files, model_file, spiece_model)
