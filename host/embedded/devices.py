"""Where models are and what they compute in: one at a time, or those that work together, on the device."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.nn import functional

from ...model_loaders.quantised.formats import set_values
from ...networks import precision
from ...networks.card_layers import join_projections


def default_device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def available_memory(device: torch.device) -> int:
    """Bytes that weights could take: of the machine, in which they wait, and of the device; 0 where it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
        known = hasattr(os, "sysconf") and set(names) <= os.sysconf_names.keys()
        free = os.sysconf(names[0]) * os.sysconf(names[1]) // 2 if known else 0
    if device.type == "cuda":
        return min(free, torch.cuda.get_device_properties(device).total_memory)
    return free


def fits_free_memory(device: torch.device, needed: int) -> bool:
    """Whether a card has ``needed`` bytes free now; of other devices torch does not know, and a CPU gains nothing."""
    if device.type != "cuda":
        return False
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return needed < torch.cuda.mem_get_info(device)[0] + unused


OUT_OF_MEMORY = (torch.OutOfMemoryError,)


class CastingLinear(torch.nn.Linear):
    """A Linear stored in one dtype that computes in its input's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class CastingConv2d(torch.nn.Conv2d):
    """A Conv2d stored in one dtype that computes in its input's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class CastingConv3d(torch.nn.Conv3d):
    """A Conv3d stored in one dtype that computes in its input's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


CASTING = {torch.nn.Linear: CastingLinear, torch.nn.Conv2d: CastingConv2d, torch.nn.Conv3d: CastingConv3d}


class _Resident:
    """The modules that are on the device, one or those that work together; the others wait on the CPU."""

    modules: tuple[torch.nn.Module, ...] = ()


def move_to_device(device: torch.device, *modules: torch.nn.Module) -> None:
    """Put modules on a device; those that are there and are not asked for go back to the CPU."""
    if device.type == "cpu":
        return
    for module in _Resident.modules:
        if module not in modules:
            module.to("cpu")
    _Resident.modules = tuple(module.to(device) for module in modules)
    for module in modules:
        join_projections(module)


def prepare(loaded, wanted: torch.dtype | None, device: torch.device, what: str) -> torch.dtype:
    """Make a loaded part's module store ``wanted`` and compute in what suits the device, which is returned.

    ``what`` names it in the log. A file's weights of another dtype than that are cast once, where memory holds
    them; weights that a person asked to be stored in ``wanted`` stay in it and are cast at each use.
    """
    module = loaded.module
    stored = precision.stored_dtype(module, wanted)
    compute = precision.compute_dtype(stored, precision.native_bf16(device))
    set_values(module, loaded.quantised, precision.floating(wanted) or compute)
    precision.use_casting_layers(module, CASTING, wanted, compute)
    if wanted is None:
        precision.cast_once(module, compute, available_memory(device))
    precision.log_compute_dtype(what, stored, compute)
    return compute
