"""Damage model files in every way that we can think of, and see that loading them ends in our own error.

    python tests/support/fuzz.py --cases 10000

Each case writes a small valid model, damages it (header bytes, cuts, huge sizes, swapped shapes, renamed and
doubled keys, dtypes, pickles with code, index files and model names that lead elsewhere, configs of nonsense)
and loads it with the real loaders. It must either load or raise UnusableFile, FileNotFoundError or
ValueError with the file's or the model's name; it must run no code, open nothing outside its folder, end
within ten seconds and need no more memory than the limit that this process gives itself (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import platforms
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.files import folders
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.lora import load_lora
from sana_nodes.model_loaders.pipeline import load_pipeline
from sana_nodes.model_loaders.text_encoder import load_text_encoder
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae

SECONDS = 10
MEMORY = 3 * 2**30
"""Bytes of address space beyond what the process has when it begins."""

OURS = (UnusableFile, FileNotFoundError, ValueError)


class Case:
    """One damaged model: where it is, how it was damaged and how it is loaded."""

    def __init__(self, folder: Path, rng: random.Random, models: dict):
        self.folder, self.rng, self.models = folder, rng, models
        self.canary = folder.parent / "canary"

    def file(self) -> tuple[Path, Callable]:
        """A valid safetensors file of its own and its loader."""
        kind = self.rng.choice(list(self.models))
        tensors, load = self.models[kind]
        path = self.folder / "model.safetensors"
        save_file(tensors, path)
        return path, load

    def parts(self, path: Path) -> tuple[dict, bytes]:
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        return json.loads(data[8 : 8 + length]), data[8 + length :]

    def write(self, path: Path, header: dict | bytes, body: bytes, length: int | None = None) -> None:
        said = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", (len(said) if length is None else length) % 2**64) + said + body)


def header_bytes(case: Case):
    path, load = case.file()
    data = bytearray(path.read_bytes())
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(case.rng.randrange(1, 9)):
        data[case.rng.randrange(end)] = case.rng.randrange(256)
    path.write_bytes(data)
    return lambda: load(path)


def cut(case: Case):
    path, load = case.file()
    data = path.read_bytes()
    path.write_bytes(data[: case.rng.choice([0, 1, 7, 8, 9, case.rng.randrange(len(data))])])
    return lambda: load(path)


def huge(case: Case):
    path, load = case.file()
    header, body = case.parts(path)
    much = case.rng.choice([2**31, 2**40, 2**62, 2**63, 2**64 - 1, 10**30, -1])
    name = case.rng.choice([key for key in header if key != "__metadata__"])
    where = case.rng.randrange(4)
    if where == 0:
        case.write(path, header, body, length=much)
        return lambda: load(path)
    if where == 1:
        header[name]["shape"] = [much, *header[name]["shape"][1:]]
    elif where == 2:
        header[name]["data_offsets"] = [0, much]
    else:
        header[name]["shape"] = [1] * case.rng.choice([70, 5000])
    case.write(path, header, body)
    return lambda: load(path)


def shapes(case: Case):
    path, load = case.file()
    header, body = case.parts(path)
    names = [key for key in header if key != "__metadata__"]
    one, other = case.rng.sample(names, 2)
    if case.rng.random() < 0.5:
        header[one]["shape"], header[other]["shape"] = header[other]["shape"], header[one]["shape"]
    elif case.rng.random() < 0.5:
        header[one]["shape"] = list(reversed(header[one]["shape"]))
    else:
        header[one], header[other] = header[other], header[one]
    case.write(path, header, body)
    return lambda: load(path)


def keys(case: Case):
    path, load = case.file()
    header, body = case.parts(path)
    name = case.rng.choice([key for key in header if key != "__metadata__"])
    entry = header.pop(name)
    strange = [
        "",
        name + "x",
        name.upper(),
        "../" + name,
        "__metadata__",
        "\ud800",
        "a" * 100_000,
        name.replace("0", "00"),
    ]
    new = case.rng.choice(strange)
    text = json.dumps({**header, new: entry})
    if case.rng.random() < 0.3:  # the same key twice
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}, {json.dumps(name)}: {json.dumps(entry)}}}"
    case.write(path, text.encode("utf-8", "surrogatepass"), body)
    return lambda: load(path)


def dtypes(case: Case):
    path, load = case.file()
    header, body = case.parts(path)
    name = case.rng.choice([key for key in header if key != "__metadata__"])
    header[name]["dtype"] = case.rng.choice(["I8", "U8", "BOOL", "F64", "F8_E4M3", "BF16", "X9", "", None, 5])
    case.write(path, header, body)
    return lambda: load(path)


class _Runs:
    """A pickle that would make a file if it were let."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def pickles(case: Case):
    path = case.folder / "model.pth"
    tensors, load = case.rng.choice(list(case.models.values()))
    held = case.rng.choice(
        [
            {"state_dict": {**tensors, "x": _Runs(case.canary)}},
            _Runs(case.canary),
            {"state_dict": {"a": 1, "b": [torch.zeros(1)], 3: torch.zeros(2)}},
            {"state_dict": list(tensors.values())[:2]},
            {"state_dict": {key: None for key in tensors}},
            [1, 2],
            {"model": {"state_dict": dict(tensors)}},
        ]
    )
    if case.rng.random() < 0.5:
        torch.save(held, path)
    else:
        path.write_bytes(pickle.dumps(held) if case.rng.random() < 0.7 else b"\x80\x02cos\nsystem\n(S'x'\ntR.")
    if case.rng.random() < 0.4:
        data = bytearray(path.read_bytes())
        for _ in range(5):
            data[case.rng.randrange(len(data))] = case.rng.randrange(256)
        path.write_bytes(data[: case.rng.randrange(1, len(data) + 1)])
    return lambda: load(path)


def index(case: Case):
    tensors, load = case.models[case.rng.choice(list(case.models))]
    secret = case.folder.parent / "secret.safetensors"
    save_file(tensors, secret)
    names = [
        "../secret.safetensors",
        str(secret),
        "a/../../secret.safetensors",
        "..",
        "",
        ".",
        "x\0y",
        5,
        None,
        ["a"],
        {},
    ]
    names += ["missing.safetensors", "..\\secret.safetensors", "C:secret.safetensors"]
    table = {key: case.rng.choice(names) for key in tensors}
    whole = case.rng.choice(
        [{"weight_map": table}, {"weight_map": []}, {"weight_map": "x"}, [], {}, {"weight_map": None}]
    )
    (case.folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(whole))
    (case.folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    (case.folder / "config.json").write_text("{}")

    def run():
        loaded = load(case.folder)
        raise AssertionError(f"it read {secret}: {loaded}")

    return run


NONSENSE = [0, -1, 10**4, 10**9, 10**30, 1.5, "7", None, [], {}, [10**6] * 3, True, "../x", float("nan")]


def configs(case: Case):
    name = case.rng.choice(["transformer", "vae", "text_encoder", "model_index.json"])
    folder = case.folder / "pipeline"
    shutil.copytree(case.models["pipeline"], folder)
    file = folder / name if name.endswith(".json") else folder / name / "config.json"
    config = json.loads(file.read_text())
    for _ in range(case.rng.randrange(1, 4)):
        config[case.rng.choice([*config, "unknown"])] = case.rng.choice(NONSENSE)
    text = json.dumps(config)
    if case.rng.random() < 0.15:
        text = case.rng.choice(["", "{", "[]", "null", text[: len(text) // 2], "[" * 100_000, "\ufeff{}"])
    file.write_text(text, encoding="utf-8")
    return lambda: load_pipeline(folder)


def names(case: Case):
    """Names of models in workflows: nothing outside the roots may be found."""
    (case.folder / "models").mkdir()
    (case.folder / "models" / "inside.safetensors").touch()
    (case.folder / "outside.safetensors").touch()
    outside = case.folder / "outside.safetensors"
    tried = [
        "../outside.safetensors",
        str(outside),
        "a/../../outside.safetensors",
        "..",
        "../",
        "/",
        "\\..\\outside.safetensors",
    ]
    tried += [
        "..\\outside.safetensors",
        "x\0y",
        "a" * 5000,
        "",
        ".",
        "./../outside.safetensors",
        "inside.safetensors/../../x",
    ]
    name = case.rng.choice(tried)

    def run():
        found = folders.find_model([case.folder / "models"], name, "model")
        inside = found.resolve().is_relative_to((case.folder / "models").resolve())
        assert inside, f"{name!r} led to {found}"

    return run


DAMAGES = (header_bytes, cut, huge, shapes, keys, dtypes, pickles, index, configs, names)


def prepared(place: Path) -> dict:
    """Valid models: the kind to its tensors and loader, and a whole pipeline's folder."""
    tiny.sprint_pipeline(place / "pipeline")
    tiny.write_lora(place / "lora.safetensors")
    from safetensors.torch import load_file

    shapes_of = {key: tuple(value.shape) for key, value in tiny.transformer().state_dict().items()}
    files = {
        "transformer": (tiny.transformer(), load_transformer),
        "video": (tiny.video_transformer(), load_transformer),
        "vae": (tiny.autoencoder(), load_vae),
        "wan": (tiny.wan_vae(), load_vae),
        "control": (tiny.controlnet(), load_controlnet),
    }
    models = {kind: (module.state_dict(), load) for kind, (module, load) in files.items()}
    models["lora"] = (load_file(place / "lora.safetensors"), lambda path: load_lora(path, shapes_of))
    models["gemma"] = (tiny.text_encoder().state_dict(), lambda path: load_text_encoder(path, tiny.DEMO / "tokenizer"))
    return {kind: ({k: v.contiguous() for k, v in t.items()}, load) for kind, (t, load) in models.items()}


class _TooLong(BaseException):
    """The alarm rang; nothing that catches Exception may catch it."""


def _ring(*_):
    raise _TooLong


def outcome(number: int, place: Path, models: dict, pipeline: Path) -> tuple[str, str | None]:
    """What kind of damage case ``number`` is, and what was wrong with how it ended, or None."""
    rng = random.Random(number)
    damage = DAMAGES[number % len(DAMAGES)]
    folder = place / f"case-{number}"
    folder.mkdir()
    case = Case(folder, rng, models)
    if damage is configs:
        case.models = {"pipeline": pipeline}
    try:
        run = damage(case)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except OURS as error:
        if not str(error):
            return damage.__name__, f"{type(error).__name__} says nothing"
        if "\n" in str(error).strip() and len(str(error)) > 4000:
            return damage.__name__, f"an error of {len(str(error))} characters"
    except _TooLong:
        return damage.__name__, f"not over after {SECONDS} seconds"
    except BaseException as error:
        return damage.__name__, f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if case.canary.exists():
        return damage.__name__, "code in the file was run"
    return damage.__name__, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _ring)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        models = prepared(place)
        platforms.limit_memory(MEMORY)
        counts, wrong = Counter(), []
        for number in range(given.first, given.first + given.cases):
            kind, said = outcome(number, place, models, place / "pipeline")
            counts[kind] += 1
            if said is not None:
                wrong.append(f"case {number} ({kind}): {said}")
                print(wrong[-1], flush=True)
    print(f"{sum(counts.values())} cases ({dict(counts)}), {len(wrong)} ended wrongly")
    return 1 if wrong else 0


def check(cases: int) -> None:
    """Run so many cases in a process of their own, which limits its memory; a test of pytest."""
    import pytest

    if not sys.platform.startswith("linux"):
        pytest.skip("its alarm and memory limit are Linux's")
    command = [sys.executable, __file__, "--cases", str(cases)]
    done = subprocess.run(command, cwd=tiny.REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{cases} cases" in done.stdout and "0 ended wrongly" in done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
