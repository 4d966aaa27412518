"""What torch.cuda answers on a machine with pretended cards."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch


class Stream:
    """Kernels run at once: nothing has to be waited for."""

    cuda_stream = 0
    device = torch.device("cuda", 0)

    def __init__(self, device=None, priority=0, **_): ...

    def wait_stream(self, other): ...

    def wait_event(self, event): ...

    def synchronize(self): ...

    def record_event(self, event=None):
        return event or Event()

    def query(self) -> bool:
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_): ...


class Generator(torch.Generator):
    """Of random values on a card: the CPU's, like all values here."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


class Event:
    def __init__(self, **_): ...

    def record(self, stream=None): ...

    def wait(self, stream=None): ...

    def synchronize(self): ...

    def query(self) -> bool:
        return True


def _card(machine, device) -> int:
    """The number of a card, from what torch.cuda takes for one."""
    if device is None:
        return machine.current
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return machine.current if index is None else index


def _memory(machine) -> dict[str, Callable]:
    def used(device=None) -> int:
        return machine.used[_card(machine, device)]

    def stats(device=None) -> dict[str, int]:
        kinds = ("active_bytes", "reserved_bytes", "allocated_bytes")
        return collections.defaultdict(int, {f"{kind}.all.current": used(device) for kind in kinds})

    def reset(device=None) -> None:
        machine.peak[_card(machine, device)] = used(device)

    return {
        "mem_get_info": lambda device=None: (machine.memory - used(device), machine.memory),
        "memory_stats": stats,
        "memory_allocated": used,
        "memory_reserved": used,
        "max_memory_allocated": lambda device=None: machine.peak[_card(machine, device)],
        "reset_peak_memory_stats": reset,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
    }


def _kind(machine) -> dict[str, Callable]:
    major, minor = machine.capability
    names: dict[str, Any] = {"name": "Pretended card", "gcnArchName": "", "uuid": ""}
    numbers = {"total_memory": machine.memory, "multi_processor_count": 132, "warp_size": 32, "is_integrated": False}
    properties = SimpleNamespace(major=major, minor=minor, **names, **numbers)
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: machine.cards,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: machine.capability,
        "get_device_name": lambda device=None: properties.name,
        "get_allocator_backend": lambda: "native",
        "is_bf16_supported": lambda including_emulation=True: major >= 8 or including_emulation,
    }


def _work(machine) -> dict[str, Any]:
    def choose(device) -> None:
        machine.current = _card(machine, device)

    @contextlib.contextmanager
    def on(device) -> Iterator[None]:
        before, machine.current = machine.current, _card(machine, device)
        try:
            yield
        finally:
            machine.current = before

    driver = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0)
    return {
        "current_device": lambda: machine.current,
        "set_device": choose,
        "device": on,
        "synchronize": lambda device=None: machine.count.wait("torch.cuda.synchronize"),
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "is_current_stream_capturing": lambda: False,
        "cudart": lambda: driver,
    }


@contextlib.contextmanager
def answers(machine) -> Iterator[None]:
    """torch.cuda speaks of ``machine`` until the end of the block."""
    given = {**_memory(machine), **_kind(machine), **_work(machine)}
    kept = {name: getattr(torch.cuda, name) for name in given}
    version, generator = torch.version.cuda, torch.Generator
    torch.version.cuda, torch.Generator = version or "13.0", Generator
    for name, value in given.items():
        setattr(torch.cuda, name, value)
    try:
        yield
    finally:
        torch.version.cuda, torch.Generator = version, generator
        for name, value in kept.items():
            setattr(torch.cuda, name, value)
