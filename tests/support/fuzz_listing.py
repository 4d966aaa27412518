"""Damage model folders: links that loop, pipes, forbidden folders, odd names, deep folders, odd configs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import socket
from pathlib import Path
from unittest import mock

from fuzz_case import ODD, ODD_TEXTS, Case, damaged_bytes
from safetensors.torch import save_file
from sana_nodes import cli
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.files import folders
from sana_nodes.model_loaders.files.kinds import TRANSFORMERS, VAES, Kind
from sana_nodes.model_loaders.files.listing import models_of_kind
from sana_nodes.model_loaders.lora import load_lora
from sana_nodes.model_loaders.pipeline import load_pipeline
from sana_nodes.model_loaders.text_encoder import load_text_encoder
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae

GOOD = "good.safetensors"
KINDS = {
    "vae": (VAES, load_vae),
    "diffusion_models": (TRANSFORMERS, load_transformer),
    "text_encoders": ((Kind.GEMMA2,), load_text_encoder),
    "loras": ((Kind.LORA,), lambda path: load_lora(path, {"x.weight": (1, 1)})),
    "controlnet": ((Kind.CONTROLNET,), load_controlnet),
    "diffusers": ((Kind.DC_AE,), load_pipeline),
}
"""Folders of models, what their loader lists, and the loader."""

NAMES = ["a b.safetensors", "-rf.safetensors", ".safetensors", "..safetensors", " .safetensors", "x.safetensors "]
NAMES += ["a\nb.safetensors", "\x1b[2J.safetensors", "a\\b.safetensors", "é漢🦊.safetensors", "\u202ecba.safetensors"]
NAMES += [
    "\udcff.safetensors",
    "x" * 240 + ".safetensors",
    "x.SAFETENSORS",
    "config.json",
    "con.pth",
    "%s{0}.pth",
    "~.pt",
]
LARGE = 2**30
"""Bytes of a sparse file: reading it whole exceeds the limit of a case."""


def loops(folder: Path, rng: random.Random) -> None:
    """Links to a folder above, more than can be followed one by one."""
    inner = folder / "inner"
    inner.mkdir()
    for number in range(rng.choice([1, 3, 25])):
        (rng.choice([folder, inner]) / f"loop{number}").symlink_to(rng.choice([folder, inner]))
    (folder / "self.safetensors").symlink_to("self.safetensors")


def a_web(folder: Path, rng: random.Random) -> None:
    """Folders that link to one another."""
    count = rng.choice([2, 5, 20])
    for one in range(count):
        (folder / f"web{one}").mkdir()
        for other in range(count):
            (folder / f"web{one}" / f"to{other}").symlink_to(folder / f"web{other}")


def pipes(folder: Path, rng: random.Random) -> None:
    inside = folder / "piped"
    inside.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "model_index.json", "x.pth"):
        if rng.random() < 0.6:
            os.mkfifo(inside / name)
    os.mkfifo(folder / "pipe.safetensors")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as unix, contextlib.suppress(OSError):
        unix.bind(str(folder / "unix.pth"))


def forbidden(folder: Path, rng: random.Random) -> None:
    """Entries that the run of the case may not open; see ``_guarded``."""
    (folder / "forbidden").mkdir()
    (folder / "forbidden" / "x.safetensors").touch()
    (folder / "forbidden.safetensors").touch()
    (folder / "closed").mkdir()
    (folder / "closed" / "config.json").write_text("{}")


def odd_names(folder: Path, rng: random.Random) -> None:
    for name in rng.sample(NAMES, 5):
        with contextlib.suppress(OSError, UnicodeError):
            (folder / name).touch() if rng.random() < 0.7 else (folder / name).mkdir()


def deep(folder: Path, rng: random.Random) -> None:
    for _ in range(rng.choice([3, 5, 6, 80])):
        folder = folder / rng.choice(["d", "x.safetensors", "e" * 30])
        folder.mkdir()
        if rng.random() < 0.3:
            (folder / "config.json").write_text("{}")
        (folder / "deep.safetensors").touch()


def configs(folder: Path, rng: random.Random) -> None:
    """Folders whose config.json or model_index.json has an odd class, is odd text, or is no file."""
    for name in ("config.json", "model_index.json"):
        odd = folder / f"odd-{name[:5]}"
        odd.mkdir()
        kind = {
            rng.choice(["_class_name", "model_type"]): rng.choice([*ODD, "AutoencoderDC", "gemma2", "SanaPipeline"])
        }
        text = json.dumps(kind) if rng.random() < 0.6 else rng.choice(ODD_TEXTS)
        (odd / name).write_text(text, encoding="utf-8")
        if rng.random() < 0.2:
            os.truncate(odd / name, LARGE)
        (odd / rng.choice(["model.safetensors", "x.pth", "model.safetensors.index.json", "model"])).touch()


def files(folder: Path, rng: random.Random) -> None:
    """Files that are empty, pointers, of other formats, sparse or cut."""
    contents = [
        b"",
        b"\0" * 8,
        b"version https://git-lfs.github.com/spec/v1\n",
        b"PK\x03\x04" * 9,
        b"\x80\x02cos\n",
        b"<html>",
    ]
    whole = (folder.parent / "vae" / GOOD).read_bytes()
    contents += [whole[:100], damaged_bytes(rng, whole), (2**40).to_bytes(8, "little") + b"{}", whole]
    for number, content in enumerate(rng.sample(contents, 4)):
        file = folder / f"file{number}.{rng.choice(['safetensors', 'sft', 'pth', 'pt', 'ckpt'])}"
        file.write_bytes(content)
        if rng.random() < 0.2:
            os.truncate(file, LARGE)


MAKERS = (loops, a_web, pipes, forbidden, odd_names, deep, configs, files)


def _guarded(function):
    """``function``, which refuses paths with forbidden or closed in them; root may open them all the same."""

    def call(path, *args, **kwargs):
        if Path(os.fsdecode(path)).name.startswith(("forbidden", "closed")):
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *args, **kwargs)

    return call


def _check_lists(root: Path, kind: str) -> None:
    """The list of each loader holds names that can be shown, and the good file."""
    for name, (wanted, _) in KINDS.items():
        problems: list[folders.Problem] = []
        models = [*folders.list_models([root / name], problems), *models_of_kind([root / name], wanted)]
        models += folders.list_folders([root / name], "model_index.json", problems)
        "\n".join([*models, *(problem.reason for problem in problems)]).encode("utf-8")
        assert all(problem.reason for problem in problems)
        assert name != "vae" or models.count(GOOD) == 2, f"{GOOD} is not listed beside what is in {kind}"


def _report(root: Path) -> list[str]:
    """The lines of the command ``models``."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    with contextlib.redirect_stdout(stream):
        assert cli.main(["models", "--models", str(root)]) == 0
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8").split("\n")


def _way(make):
    def way(case: Case):
        root, kind = case.folder / "models", case.rng.choice(list(KINDS))
        for name in KINDS:
            (root / name).mkdir(parents=True)
        save_file(case.samples.tensors["dc_ae"], root / "vae" / GOOD)
        make(root / kind, case.rng)
        there = sorted(entry for entry in (root / kind).iterdir() if "\udcff" not in entry.name)  # not offered
        chosen = case.rng.choice([root / "vae" / GOOD, *there])

        def run():
            with mock.patch("os.scandir", _guarded(os.scandir)):
                _check_lists(root, kind)
                lines = _report(root)
            assert any(f"vae/{GOOD}: DC-AE" in line for line in lines), "the good file is not in the report"
            assert all(line.isprintable() for line in lines), "a line has a control character"
            return KINDS["vae" if chosen.name == GOOD else kind][1](chosen)

        return run

    way.__name__ = make.__name__
    return way


WAYS = tuple(_way(make) for make in MAKERS)
