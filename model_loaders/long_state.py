"""The state of a long video as a safetensors file: what a later run continues from."""

from __future__ import annotations

import json
from pathlib import Path

from ..samplers.block_causal import BlockState
from .files.checkpoint import UnusableFile, brief, json_object

SUFFIX = ".state.safetensors"
VERSION = 1
KEPT = "kept."
"""The prefix of the network's tensors."""

OTHERS = ("last", "context", "noise", "recent")
NUMBERS = {"cached_blocks": int, "start": int, "blocks": int, "seed": int, "model": str}
"""BlockState's fields that are in the file's header, and of which type."""


def write_state(path: Path, state: BlockState) -> None:
    """Write a state to a file; OSError where the disk fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"{KEPT}{name}": tensor for name, tensor in state.kept.items()}
    tensors |= {name: tensor for name in OTHERS if (tensor := getattr(state, name)) is not None}
    header = {"version": VERSION, **{name: getattr(state, name) for name in NUMBERS}}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, {"sana_state": json.dumps(header)})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def read_state(path: Path) -> BlockState:
    """The state that :func:`write_state` wrote; UnusableFile, with what is wrong, for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("sana_state")
            if text is None:
                raise UnusableFile(f"{path} is not the state of a long video: save one with Sana Save Video State")
            header = _header(path, text)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise UnusableFile(f"{path} cannot be read ({brief(error)}): save the state again") from error
    kept = {name.removeprefix(KEPT): tensor for name, tensor in tensors.items() if name.startswith(KEPT)}
    others = {name: tensors[name] for name in OTHERS if name in tensors}
    return BlockState(kept=kept, **others, **header)


def _header(path: Path, text: str) -> dict:
    header = json_object(text, f"the header of {path}")
    if header.get("version") != VERSION:
        raise UnusableFile(f"{path} is of version {brief(header.get('version'))}; this version reads {VERSION}")
    if wrong := [name for name, kind in NUMBERS.items() if type(header.get(name)) is not kind]:
        raise UnusableFile(f"the header of {path} has no {wrong[0]}: save the state again")
    return {name: header[name] for name in NUMBERS}
