"""comfy-aimdo, ComfyUI 0.33's dynamic memory, without its native library: what ComfyUI calls, on a pretended card.

``ROOM`` says what happens when a layer asks for its weights on the card: "all" stay there, "none" ever gets room, and
with "some" every third one is evicted.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import types
from typing import Any

import torch

ROOM = "all"
PAGE = 32 << 20
"""Bytes of a page, of which a signature has a number each."""

_addresses = itertools.count(1 << 40, 1 << 36)
_turns = itertools.count()
_on_card: dict[tuple, torch.Tensor] = {}
"""What is on the card, by the range of virtual memory."""


class VirtualRange:
    """ModelVBAR: a range of virtual memory for a model's weights, which may be on the card or not."""

    def __init__(self, size: int, device: int):
        self.size, self.device, self.start, self.used = int(size), device, next(_addresses), 0
        self.version, self.versions = 1, {}

    def alloc(self, size: int) -> tuple:
        part = (self, self.start + self.used, size)
        self.used += -(-size // 512) * 512
        if self.used > self.size:
            raise MemoryError("the model's range of virtual memory is full")
        return part

    def fault(self, part: tuple):
        """The signature of the pages of ``part``, or None where there is no room; another one where they are new."""
        evicted = ROOM == "none" or (ROOM == "some" and next(_turns) % 3 == 0)
        if evicted:
            _on_card.pop(part[1:], None)
            self.versions.pop(part, None)
            self.version += 1
            return None
        signature = (ctypes.c_uint32 * (part[2] // PAGE + 2))()
        signature[0] = self.versions.setdefault(part, self.version)
        return signature

    def free_memory(self, size) -> int:
        freed = self.loaded_size()
        for part in self.versions:
            _on_card.pop(part[1:], None)
        self.versions, self.version = {}, self.version + 1
        return freed

    def loaded_size(self) -> int:
        return sum(_on_card[part[1:]].numel() for part in self.versions if part[1:] in _on_card)

    def prioritize(self, *_): ...

    def deprioritize(self): ...

    def set_watermark_limit(self, size): ...

    def get_nr_pages(self) -> int:
        return 0

    def get_watermark(self) -> int:
        return 0

    def get_residency(self) -> list:
        return []


class CastBuffer:
    """VRAMBuffer: memory on the card for weights that are cast at each use; it grows."""

    def __init__(self, size: int, device: int):
        self.device, self.tensor = device, _bytes(0, device)

    def size(self) -> int:
        return self.tensor.numel()

    def get(self, size: int, offset: int = 0) -> tuple:
        if size + offset > self.tensor.numel():
            grown = _bytes(size + offset, self.device)
            grown[: self.tensor.numel()] = self.tensor
            self.tensor = grown
        return (self, offset, size)


class HostBuffer:
    """Pinned main memory of a model's weights."""

    def __init__(self, size: int, prewarm: int = 0, max_grow_size: int = 0, **_):
        self.tensor, self.size = torch.empty(max(int(size), int(max_grow_size)), dtype=torch.uint8), int(size)

    def extend(self, size: int, **_) -> int:
        if self.size + size > self.tensor.numel():
            raise RuntimeError("the buffer is full")
        self.size += int(size)
        return self.tensor.data_ptr()

    def truncate(self, size: int, **_) -> None:
        self.size = int(size)

    def get_raw_address(self) -> int:
        return self.tensor.data_ptr()

    def read_file_slice(self, *_, **__):
        raise RuntimeError("weights are not read from files here")


def _bytes(size: int, device: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", device))


def tensor_of(part: tuple, device) -> torch.Tensor:
    """aimdo_to_tensor: the bytes of an allocation on the card."""
    owner, start, size = part
    if isinstance(owner, CastBuffer):
        return owner.tensor[start : start + size]
    if part[1:] not in _on_card:
        _on_card[part[1:]] = _bytes(size, owner.device)
    return _on_card[part[1:]]


def same_signature(a, b) -> bool:
    return a is not None and b is not None and list(a) == list(b)


def nothing(*_, **__) -> None: ...


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(f"comfy_aimdo.{name}" if name else "comfy_aimdo")
    module.__dict__.update(content)
    sys.modules[module.__name__] = module
    return module


LEVELS = ("none", "critical", "error", "warning", "info", "detail", "debug", "verbose", "vverbose")


def install() -> None:
    """Put it in the place of comfy-aimdo, before ComfyUI is imported."""
    parts = {
        "control": {
            **{name: lambda *_, **__: True for name in ("init", "init_device", "init_devices")},
            **{name: nothing for name in ("analyze", "deinit", *(f"set_log_{level}" for level in LEVELS))},
            "get_total_vram_usage": lambda: 0,
        },
        "model_vbar": {
            "ModelVBAR": VirtualRange,
            "vbar_fault": lambda part: part[0].fault(part),
            "vbar_unpin": nothing,
            "vbar_signature_compare": same_signature,
            "vbars_reset_watermark_limits": nothing,
            "vbars_analyze": lambda device=None: 0,
        },
        "torch": {
            "aimdo_to_tensor": tensor_of,
            "hostbuf_to_tensor": lambda buffer: buffer.tensor[: buffer.size],
            "get_torch_allocator": nothing,
        },
        "vram_buffer": {"VRAMBuffer": CastBuffer},
        "host_buffer": {"HostBuffer": HostBuffer, "cleanup_file_reader": nothing, "read_file_to_device": None},
        "model_mmap": {"ModelMMAP": None},
    }
    package = _module("", __path__=[])
    for name, content in parts.items():
        setattr(package, name, _module(name, **content))
