"""A checkpoint: keys, shapes, and tensors that are read on access."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .nesting import DEEPEST, is_shallow

if TYPE_CHECKING:  # the command line lists models without torch
    import torch


class UnusableFile(ValueError):
    """A weight file or folder that cannot be used. The message has the reason and what to do."""


def brief(value: object) -> str:
    """Something that a file contains, for a message: at most 200 characters, all of which UTF-8 can encode."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 200 else f"{text[:200]}…"


def json_object(text: str | bytes, where: str) -> dict:
    """The JSON object in a text of a file; UnusableFile, which ``where`` begins, if it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableFile(f"{where} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnusableFile(f"{where} is not a JSON object")
    if not is_shallow(value):
        raise UnusableFile(f"{where} is nested more than {DEEPEST} deep")
    return value


Value = Callable[["torch.dtype"], "torch.Tensor"]
"""Dequantises a weight to a floating-point dtype."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint, not read yet.

    ``read(alone)``: the stored tensor, a view of the memory-mapped file; with ``alone`` in a separate mapping,
    which is freed with the tensor. ``value``: set if the stored tensor is quantised; then ``shape`` is that
    of the floating-point weight.
    """

    shape: tuple[int, ...]
    read: Callable[..., torch.Tensor]
    value: Value | None = None

    def part(self, number: int, count: int) -> Entry:
        """One of ``count`` equal parts along the first dimension; a tensor with one element is shared."""
        if count == 1 or math.prod(self.shape) == 1:
            return self
        shape = (self.shape[0] // count, *self.shape[1:])
        return self._changed(shape, lambda tensor: tensor.chunk(count)[number])

    def matrix(self) -> Entry:
        """A kernel [O, I, 1, 1] as a matrix [O, I]."""
        return self._changed(self.shape[:2], lambda tensor: tensor.flatten(1))

    def _changed(self, shape: tuple[int, ...], change: Callable) -> Entry:
        value = None if self.value is None else partial(_then, self.value, change)
        return Entry(shape, partial(_then, self.read, change), value)


def _then(read: Callable, change: Callable, *args, **kwargs):
    return change(read(*args, **kwargs))


@dataclass(frozen=True)
class Checkpoint(Mapping[str, "torch.Tensor"]):
    """A lazily opened checkpoint: a mapping of key to CPU tensor.

    ``config_file``: the file of ``config``, for error messages.
    """

    path: Path
    entries: dict[str, Entry] = field(repr=False)
    config: dict | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    config_file: Path | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: entry.shape for key, entry in self.entries.items()}

    def __getitem__(self, key: str) -> torch.Tensor:
        import torch

        entry = self.entries[key]
        return entry.read() if entry.value is None else entry.value(torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def config_with(self, key: str) -> dict | None:
        """The config if it has ``key`` and so belongs to this type of model, otherwise None."""
        return self.config if self.config and key in self.config else None

    def shape(self, key: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor with ``dims`` dimensions; UnusableFile if it is missing or has another number."""
        entry = self.entries.get(key)
        if entry is None or len(entry.shape) != dims or 0 in entry.shape:
            found = "is missing" if entry is None else f"has the shape {list(entry.shape)}"
            raise UnusableFile(f"{self.path}: {key} {found}; {dims} dimensions were expected there")
        return entry.shape

    def with_entries(self, entries: dict[str, Entry]) -> Checkpoint:
        """The same file with other entries."""
        return replace(self, entries=entries)

    def renamed(self, rows: Iterable[tuple[str, str, int, int]]) -> Checkpoint:
        """The same tensors under other names; rows of new name, old name, part and number of parts.

        Parts are equal views along the old tensor's first dimension. UnusableFile if two keys get the
        same name, or if the dimension is not divisible.
        """
        entries: dict[str, Entry] = {}
        sources: dict[str, str] = {}
        for new, old, part, parts in rows:
            if new in entries:
                raise UnusableFile(f"{self.path}: the keys {sources[new]} and {old} both map to {new}")
            entry = self.entries[old]
            if parts > 1 and math.prod(entry.shape) != 1 and (not entry.shape or entry.shape[0] % parts):
                count = entry.shape[0] if entry.shape else 0
                raise UnusableFile(f"{self.path}: {old} has {count} rows, which is not divisible by {parts}")
            entries[new], sources[new] = entry.part(part, parts), old
        return self.with_entries(entries)

    def without_prefix(self, prefix: str, only: bool = False) -> Checkpoint:
        """The same without ``prefix`` in the names; ``only``: without the keys that do not have it."""
        keys = (key for key in self if not only or key.startswith(prefix))
        return self.renamed((key.removeprefix(prefix), key, 0, 1) for key in keys)

    def as_matrices(self, keys: Iterable[str]) -> Checkpoint:
        """The same with the tensors ``keys``, kernels [O, I, 1, 1], as matrices [O, I]."""
        entries = dict(self.entries)
        for key in keys:
            shape = entries[key].shape
            if shape[2:] != (1, 1):
                raise UnusableFile(f"{self.path}: {key} has the shape {list(shape)}; [O, I, 1, 1] was expected")
            entries[key] = entries[key].matrix()
        return self.with_entries(entries)
