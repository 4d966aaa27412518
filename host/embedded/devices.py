"""Where models are and what they compute in: one at a time, or those that work together, on the device."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...model_loaders import dtypes


def device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def compute_dtype(stored: torch.dtype, place: torch.device) -> torch.dtype:
    """bfloat16 where the device is made for it and the weights are no finer, else float32; never float16."""
    if stored == torch.float32 or place.type != "cuda" or not torch.cuda.is_bf16_supported():
        return torch.float32
    return torch.bfloat16


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


def bring(place: torch.device, *modules: torch.nn.Module) -> None:
    """Put modules on a device; those that are there and are not asked for go back to the CPU."""
    if place.type == "cpu":
        return
    for module in _Resident.modules:
        if module not in modules:
            module.to("cpu")
    _Resident.modules = tuple(module.to(place) for module in modules)


def adapted(module, wanted, place) -> torch.dtype:
    """Make a module store ``wanted`` and compute in what suits the device, which is returned."""
    compute = compute_dtype(dtypes.stored_dtype(module, wanted), place)
    dtypes.adapt(module, CASTING, wanted, compute)
    return compute
