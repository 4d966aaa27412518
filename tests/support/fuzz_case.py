"""What every kind of fuzz case has: its folder, its random numbers, valid models to damage, and ways to damage JSON."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gemma
import tiny
import torch
from safetensors.torch import load_file, save_file

FOLDERS = ("image", "sprint", "video", "control", "dc_ae", "wan", "ltx2", "gemma")
"""The models that are folders of a config.json and weights."""


@dataclass(frozen=True)
class Samples:
    """Valid models: ``folders`` by name, ``tensors`` of the same, and a whole ``pipeline`` folder."""

    folders: dict[str, Path]
    tensors: dict[str, dict[str, torch.Tensor]]
    pipeline: Path
    spiece: bytes
    lora_shapes: dict[str, tuple[int, ...]]

    def config(self, name: str) -> dict:
        return json.loads((self.folders[name] / "config.json").read_text())


def written_samples(root: Path) -> Samples:
    """Write the valid models below ``root``."""
    modules = (
        tiny.image_transformer(),
        tiny.transformer(),
        tiny.video_transformer(),
        tiny.controlnet(),
        tiny.autoencoder(),
        tiny.wan_vae(),
        tiny.ltx2_vae(),
        tiny.text_encoder(),
    )
    folders = {name: root / name for name in FOLDERS}
    for name, module in zip(FOLDERS, modules):
        module.save_pretrained(folders[name])
    shutil.copytree(tiny.DEMO / "tokenizer", folders["gemma"] / "tokenizer")
    tensors = {name: load_file(next(folder.glob("*.safetensors"))) for name, folder in folders.items()}
    tiny.image_pipeline(root / "pipeline")
    shapes = {name: tuple(value.shape) for name, value in tensors["sprint"].items()}
    return Samples(folders, tensors, root / "pipeline", gemma.spiece(), shapes)


class Case:
    """One damaged model: its empty folder, its random numbers, and the valid models."""

    def __init__(self, folder: Path, rng: random.Random, samples: Samples, turn: int = 0):
        self.folder, self.rng, self.samples, self.turn = folder, rng, samples, turn
        self.canary = folder.parent / "canary"
        self.named = [folder.name]
        """Texts, one of which an error must contain: the file's path contains the folder's name."""

    def copy(self, source: Path, name: str = "model") -> Path:
        """A folder of links to the files of a sample; write with ``replace`` alone."""
        return Path(shutil.copytree(source, self.folder / name, copy_function=os.link))

    def weights(self, tensors: dict[str, torch.Tensor], name: str = "model.safetensors", metadata=None) -> Path:
        path = self.folder / name
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        return path


def replace(file: Path, data: bytes | str) -> None:
    """Write a file that may be a link to a sample's."""
    file.unlink(missing_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))


def parts(path: Path) -> tuple[dict, bytes]:
    """The header of a safetensors file and what follows it."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: dict | bytes, body: bytes, length: int | None = None) -> None:
    """Write a safetensors file; ``length``: what it states as its header's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    replace(path, struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + body)


ODD = [0, -1, 1, 3, 10**4, 10**9, 2**63, 10**30, 10**400, 1.5, -0.5, 1e300, float("nan"), float("inf"), True, None]
ODD += ["", "7", "x", "../x", "\ud800", "org/kernel", "(a+)+$", "a" * 10_000, [], {}, [None], ["a", "b"], [[1, 2]]]
ODD += [{"a": 1}, {"type": "x"}, [10**6] * 3, [0] * 6, [1] * 1000, [[[[]]]]]
ODD_TEXTS = ["", "{", "[]", "null", "7", '"x"', "\ufeff{}", "[" * 100_000, '{"a": ' * 3000, "{" + " " * 10**6 + "}"]
ODD_TEXTS += ['{"a": 1, "a": 2}', '{"a": 1e999, "b": ' + "9" * 5000 + "}", "{'a': 1}", "\0", "version: 1"]


def near(rng: random.Random, value: object) -> object:
    """A value that looks like ``value`` and is not it."""
    if isinstance(value, bool):
        return rng.choice([not value, int(value), str(value)])
    if isinstance(value, (int, float)):
        return rng.choice([value + 1, value - 1, value * 2, -value, value * 10**6, float(value), str(value), [value]])
    if isinstance(value, list) and value:
        at, changed = rng.randrange(len(value)), list(value)
        changed[at] = rng.choice([near(rng, value[at]), copy.deepcopy(rng.choice(ODD))])
        return rng.choice([changed, value[1:], [*value, value[-1]], value[::-1], [value], value[0]])
    if isinstance(value, str):
        return rng.choice([value.upper(), value + "x", [value], value[:-1], list(value)])
    return copy.deepcopy(rng.choice(ODD))


def odd_entries(rng: random.Random, table: dict, more: tuple[str, ...] = (), turn: int | None = None) -> dict:
    """A JSON object with one to three entries changed, put in or taken out; with ``turn`` the first is each in turn."""
    changed, keys = dict(table), [*table, *more, "unknown"]
    for count in range(rng.choice([1, 1, 1, 2, 3])):
        key = keys[turn % len(keys)] if turn is not None and count == 0 else rng.choice(keys)
        if rng.random() < 0.1:
            changed.pop(key, None)
        else:
            changed[key] = near(rng, table.get(key)) if rng.random() < 0.5 else copy.deepcopy(rng.choice(ODD))
    return changed


def damage_json(case: Case, file: Path, more: tuple[str, ...] = ()) -> None:
    """Change entries of a JSON file; now and then its text, its bytes, or what kind of thing it is."""
    table, how = json.loads(file.read_text(encoding="utf-8")), case.rng.random()
    if how < 0.8:
        replace(file, json.dumps(odd_entries(case.rng, table, more, case.turn)))
    elif how < 0.88:
        replace(file, case.rng.choice([*ODD_TEXTS, file.read_text(encoding="utf-8")[: case.rng.randrange(40)]]))
    elif how < 0.95:
        replace(file, damaged_bytes(case.rng, file.read_bytes()))
    else:
        file.unlink()
        case.rng.choice([file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to(file.name), lambda: None])()


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut off, taken out, put in or copied from elsewhere."""
    changed, at = bytearray(data), rng.randrange(len(data))
    how = rng.randrange(5)
    if how == 0:
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif how == 1:
        del changed[at:]
    elif how == 2:
        del changed[at : at + rng.randrange(1, 200)]
    elif how == 3:
        changed[at:at] = rng.randbytes(rng.randrange(1, 50))
    else:
        source = rng.randrange(len(data))
        changed[at : at + 100] = data[source : source + rng.randrange(1, 300)]
    return bytes(changed)


def odd_shape(rng: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A small shape that is not ``shape``."""
    sides = list(shape)
    if sides and rng.random() < 0.6:
        sides[rng.randrange(len(sides))] = rng.choice([0, 1, 2, 3, 5, 7])
        return tuple(sides)
    odd = [(), (0,), (1,), (2, 0), tuple(reversed(sides)), tuple(sides[1:]), (*sides, 1), (1,) * 9]
    return rng.choice(odd)


def odd_tensors(rng: random.Random, tensors: dict, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """The same tensors with one or two of another shape, dtype or name, or missing."""
    changed = dict(tensors)
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(names or list(tensors))
        value = changed.pop(name, None)
        how = rng.randrange(5) if value is not None else 4
        if how == 0:
            changed[name] = torch.zeros(odd_shape(rng, tuple(value.shape)), dtype=value.dtype)
        elif how == 1:
            changed[name] = value.to(rng.choice([torch.int8, torch.bool, torch.float64, torch.float8_e5m2]))
        elif how == 2:
            changed[odd_name(rng, name)] = value
        elif how == 3:
            changed |= {name: value, odd_name(rng, name): value.clone()}
    return changed or {"x": torch.zeros(1)}


def odd_name(rng: random.Random, name: str) -> str:
    digit = next((character for character in name if character.isdecimal()), "0")
    names = [name + "x", name.upper(), "../" + name, "model." + name, "a" * 50_000, name.partition(".")[2] or "x"]
    names += [name.replace(digit, number) for number in ("00", "٣", "²", "9" * 30, "9" * 5000, "-1", "99", "1.1")]
    return rng.choice([*names, name.replace(".", ""), name.replace(".", ".."), "", ".", "\ufeff" + name, "é" * 50])


def all_numbers(value: object) -> Iterator[object]:
    """The leaves of nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from all_numbers(item)
    else:
        yield value


Way = Callable[[Case], Callable]
"""Damages a model in a case's folder and returns the function that loads it."""
