"""Open weight files lazily: headers first, and tensors on access.

A checkpoint is a safetensors file, a PyTorch file of plain tensors (.pth), or a folder as written by
diffusers and transformers: a config.json with one file, or with shards and an index. A tensor is a
copy-on-write view of the memory-mapped file. A PyTorch file is read with weights_only: code in it is
never run.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
from functools import partial
from pathlib import Path

from .checkpoint import Checkpoint, Entry, UnusableFile, brief
from .nesting import DEEPEST, is_shallow

BASENAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", ".bf16", ".fp16", ".fp32")
PYTORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
LONGEST_KEY, LONGEST_NAME, MOST_JSON = 512, 255, 4 * 2**20
"""Characters of a tensor's name (published ones have 100 at most) and of a shard's, and bytes of a JSON file."""

MOST_PICKLED, LONGEST_VALUE = 8 * 2**20, 16 * 1024
"""Bytes of the pickle in a PyTorch file, which has names and shapes alone, and of a value in it.

torch searches its error messages by a regular expression that takes the square of a name's length.
"""

LFS_MARK = b"version https://git-lfs.github.com/spec/"


def _config_file(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path.with_suffix(".json")


def config_of_file(path: Path) -> dict | None:
    """The config in a folder, or beside a file under its name; None where there is none, UnusableFile for a bad one."""
    file = _config_file(path)
    return read_json(file) if file.is_file() else None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a safetensors or PyTorch file, or a folder of them, and identify quantised layers.

    Raises FileNotFoundError or UnusableFile with the file and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    config = config_of_file(path)
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(path):
        found, header = _open_pytorch(file) if file.suffix in PYTORCH_SUFFIXES else _open_safetensors(file)
        metadata.update(header)
        if twice := entries.keys() & found.keys():
            raise UnusableFile(f"{file} has the key {min(twice)}, and so has another file of {path}; keep one of them")
        entries.update(found)
    if not entries:
        raise UnusableFile(f"{path} has no tensors")
    from ..quantised.formats import with_quantised_layers

    if (longest := max(entries, key=len))[LONGEST_KEY:]:
        raise UnusableFile(f"{path} has a key of {len(longest):,} characters ({longest[:40]}…); download it again")
    own_config = None if config is None else _config_file(path)
    return with_quantised_layers(Checkpoint(path, entries, config, metadata, own_config))


def _open_safetensors(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    handle = open_header(file)
    entries = {
        key: Entry(tuple(handle.get_slice(key).get_shape()), partial(_read, handle, file, key))
        for key in handle.keys()  # noqa: SIM118 - a safetensors handle, no dict
    }
    return entries, handle.metadata() or {}


def _read(handle, file: Path, key: str, alone: bool = False):
    return (open_header(file) if alone else handle).get_tensor(key)


def header_keys(file: Path) -> list[str]:
    """The keys of a safetensors file, without reading tensors; UnusableFile if it is not a safetensors file."""
    return list(open_header(file, "np").keys())


def checkpoint_keys(path: Path) -> list[str]:
    """The keys of what open_checkpoint opens; torch is needed for PyTorch files alone."""
    files = weight_files(path)
    return [k for f in files for k in (_open_pytorch(f)[0] if f.suffix in PYTORCH_SUFFIXES else header_keys(f))]


def open_header(file: Path, framework: str = "pt"):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework=framework, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        refuse_pointer(file)
        size = file.stat().st_size if file.exists() else 0
        raise UnusableFile(
            f"{file} ({size:,} bytes) is not a complete safetensors file ({brief(error)}); "
            "it may be truncated or of another format: download it again"
        ) from error


def _open_pytorch(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a PyTorch file, memory-mapped if its format allows it; nothing else in it is used."""
    import torch

    _check_archive(file)
    content = _load_pytorch(file)
    for name in ("state_dict", "model", "module", "generator"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise UnusableFile(f"{file} contains {type(content).__name__}, not a dictionary of tensors")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    return {key: Entry(tuple(value.shape), partial(_itself, value)) for key, value in tensors.items()}, {}


def _check_archive(file: Path) -> None:
    """UnusableFile for a zip archive that torch.save would not write: compressed, or with long values in its pickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            _check_entries(archive, file)
    except UnusableFile:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return  # not a zip archive: the format before PyTorch 1.6, or something that torch refuses itself


def _check_entries(archive: zipfile.ZipFile, file: Path) -> None:
    entries = archive.infolist()
    if grown := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        raise UnusableFile(
            f"{file} is a compressed archive ({brief(grown[0])}), which is unsupported: get it as safetensors"
        )
    for entry in entries:
        if entry.filename.endswith(".pkl"):
            with archive.open(entry) as stream:
                _check_pickle(stream.read(MOST_PICKLED + 1), file)


def _check_pickle(data: bytes, file: Path) -> None:
    """UnusableFile for a pickle that is damaged, or longer than names and shapes; nothing in it is run."""
    more = f"{file} has more in its pickle than names and shapes: get it as safetensors"
    if len(data) > MOST_PICKLED:
        raise UnusableFile(more)
    try:
        values = (argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, (str, bytes)))
        longest = max(map(len, values), default=0)
    except Exception as error:  # pickletools raises any exception for damaged bytes
        raise UnusableFile(f"{file} has a damaged pickle ({brief(error)}): download it again") from error
    if longest > LONGEST_VALUE:
        raise UnusableFile(more)


def _itself(tensor, alone: bool = False):
    return tensor


class _ShortReads(io.BufferedReader):
    """A file that gives an unpickler names and values of limited length; storages are read by its descriptor."""

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(LONGEST_VALUE)
        if len(line) == LONGEST_VALUE:
            raise pickle.UnpicklingError(f"a name of more than {LONGEST_VALUE:,} bytes")
        return line

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LONGEST_VALUE:
            raise pickle.UnpicklingError(f"a value of more than {LONGEST_VALUE:,} bytes")
        return super().read(size)


def _load_pytorch(file: Path):
    import torch

    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # it cannot be mapped, as a file in the format before PyTorch 1.6
            with file.open("rb") if zipfile.is_zipfile(file) else _ShortReads(io.FileIO(file)) as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises any exception for damaged bytes
        reason = brief((str(error) or type(error).__name__).splitlines()[0])
        raise UnusableFile(
            f"{file} cannot be read as a PyTorch file of plain tensors ({reason}); it may be truncated, or contain "
            "code, which is never run: download it again, or get it as safetensors"
        ) from error


def weight_files(path: Path) -> list[Path]:
    """The files of a checkpoint: the file itself, a folder's one safetensors file, or its shards."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UnusableFile(f"{path} is neither a file nor a folder")
    for name in (base + variant for base in BASENAMES for variant in VARIANTS):
        stem, _, variant = name.partition(".")
        index = path / (f"{stem}.safetensors.index.json" if not variant else f"{stem}.safetensors.index.{variant}.json")
        if index.is_file():
            return _shards(index)
        if (path / f"{name}.safetensors").is_file():
            return [path / f"{name}.safetensors"]
    names = sorted(p.name for p in path.iterdir())
    if old := [name for name in names if name.endswith(PYTORCH_SUFFIXES)]:
        raise UnusableFile(f"{path} has its weights only as {old[0]}; get the folder's safetensors files instead")
    listed = ", ".join(names[:8]) or "no files"
    raise FileNotFoundError(f"{path} has no {BASENAMES[0]}.safetensors or model.safetensors (it has {listed})")


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UnusableFile(f"{index} has no weight_map; download it again")
    for name in table.values():
        if not _is_file_name(name):
            raise UnusableFile(f"{index} names the shard {brief(repr(name))}, which is not a file of its folder")
    names = sorted(set(table.values()))
    for name in names:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(
                f"{index} names the shard {name}, which is missing; download it into {index.parent}"
            )
    return [index.parent / name for name in names]


def _is_file_name(name: object) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        return False
    return Path(name).name == name and "\\" not in name and name.isprintable()


def refuse_pointer(file: Path) -> None:
    """UnusableFile for a Git LFS pointer: the text of about 130 bytes that a clone without Git LFS has for a file."""
    with file.open("rb") as stream:
        if stream.read(len(LFS_MARK)) == LFS_MARK:
            raise UnusableFile(
                f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download it"
            )


def read_json(file: Path) -> dict:
    """A JSON object from a file; UnusableFile if it is not one."""
    try:
        if (size := file.stat().st_size) > MOST_JSON:
            raise ValueError(f"it has {size:,} bytes, more than any config")
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableFile(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnusableFile(f"{file} contains {type(value).__name__}, not a JSON object")
    if not is_shallow(value):
        raise UnusableFile(f"{file} is nested more than {DEEPEST} deep; download it again")
    return value
