"""Where models are and what they compute in: those that fit are on the device together."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.nn import functional

from ...model_loaders.quantised.formats import set_values
from ...networks import accelerated, precision
from ...networks.card_layers import join_projections
from ...networks.fast_video_transformer import forget_positions
from ...networks.text_encoder import TokenEmbedding


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


def room_for_batches(device: torch.device, module: torch.nn.Module) -> int | None:
    """Bytes beside a module's weights that a batch may take, with a tenth to spare; None where it is unknown."""
    total = available_memory(device)
    taken = weight_bytes(module) if device.type == "cuda" else 0
    return max(0, total - taken) * 9 // 10 if total else None


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


class Residence:
    """A module's weights on a device: copies of those in main memory, which stay there and are used again.

    A token embedding stays in main memory: it is large, and a prompt looks up a few of its rows.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device):
        self.module, self.device = module, device
        self._parameters: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._buffers: list[tuple[torch.nn.Module, str, torch.Tensor]] = []
        try:
            self._enter()
        except Exception:
            self.leave()
            raise

    def _enter(self) -> None:
        for part in self.module.modules():
            for parameter in () if isinstance(part, TokenEmbedding) else part.parameters(recurse=False):
                here = parameter.data
                parameter.data = here.to(self.device)
                self._parameters.append((parameter, here))
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = buffer.to(self.device)
                self._buffers.append((part, name, buffer))

    def leave(self) -> None:
        """Drop the copies: nothing changes weights that are on a device, so none has to be copied back."""
        for parameter, here in self._parameters:
            parameter.data = here
        for part, name, buffer in self._buffers:
            part._buffers[name] = buffer
        forget_positions(self.module)
        accelerated.release(self.module)


def weight_bytes(module: torch.nn.Module) -> int:
    """What a module takes on a device."""
    parts = (part for part in module.modules() if not isinstance(part, TokenEmbedding))
    return sum(t.nbytes for part in parts for t in (*part.parameters(False), *part.buffers(False)))


_resident: list[Residence] = []
"""What is on a device, the last used ones at the end."""


def move_to_device(device: torch.device, *modules: torch.nn.Module, room: int = 0) -> None:
    """Put modules on a device, with ``room`` bytes beside them; others leave it, the oldest first, until they fit.

    Of a device whose free memory torch does not know all others leave.
    """
    if device.type == "cpu":
        return
    there = {id(one.module): one for one in _resident}
    new = [module for module in modules if id(module) not in there]
    needed = room + sum(map(weight_bytes, new))
    for one in [one for one in _resident if one.module not in modules]:
        if not fits_free_memory(device, needed):
            put_away(one)
    for module in modules:
        one = there.get(id(module)) or Residence(module, device)
        _resident[:] = [*(other for other in _resident if other is not one), one]
    for module in new:
        join_projections(module)


def put_away(one: Residence) -> None:
    _resident.remove(one)
    one.leave()


def put_all_away(*modules: torch.nn.Module) -> None:
    """Free a device of all modules but these."""
    for one in [one for one in _resident if one.module not in modules]:
        put_away(one)


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
