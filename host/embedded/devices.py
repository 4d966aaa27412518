"""Where models are and what they compute in: one at a time, or those that work together, on the device."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...model_loaders.quantised.formats import set_values
from ...networks import precision


def default_device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_native_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 as fast as it can."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


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


def prepare(loaded, wanted: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Make a loaded part's module store ``wanted`` and compute in what suits the device, which is returned."""
    module = loaded.module
    compute = precision.compute_dtype(precision.stored_dtype(module, wanted), has_native_bf16(device))
    set_values(module, loaded.quantised, precision.floating(wanted) or compute)
    precision.use_casting_layers(module, CASTING, wanted, compute)
    return compute
