"""The peak of PyTorch's allocated memory during a call, without a graphics card and without computation.

``traced_peak`` runs a call on meta tensors and counts the storages that exist at the same time: from the operation that
returns a storage until its last tensor is deleted, so views, aliases and in-place operations count once. Scaled
dot-product attention and ``rms_norm`` count as fused kernels, as on a graphics card: only their output. The workspace
of a kernel (of a convolution, for example) is not included. ``allocated_peak`` is the same for PyTorch's CPU
allocator, from its profiler, and ``cuda_peak`` for a graphics card.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FusedKernels(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        if func is torch.nn.functional.rms_norm:
            return self.rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def attention(self, query, key, value, *args, **kwargs):
        """Its result is [B, tokens, heads, channels] in memory, as the fast kernels write it."""
        batch, heads, tokens = query.shape[:3]
        return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)

    def rms_norm(self, x, *args, **kwargs):
        return torch.empty_like(x.contiguous())


CONVOLUTIONS = {torch.ops.aten.convolution.default}
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of dimensions."""


def in_layout_of(given: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """A convolution's result as processors and cards lay it out: on meta tensors it is never channels last."""
    layout = LAYOUTS.get(given.ndim)
    if layout is None or not result.is_meta or not given.is_contiguous(memory_format=layout):
        return result
    return torch.empty_like(result, memory_format=layout)


class _Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        result = in_layout_of(args[0], result) if func in CONVOLUTIONS else result
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in given:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size


@torch.no_grad()
def traced_peak(call: Callable[[], object]) -> int:
    """Peak bytes that ``call`` allocates on meta tensors, with its result and without its inputs."""
    with FusedKernels(), _Counting() as counting:
        result = call()
    peak = counting.peak
    del result
    return peak


@torch.no_grad()
def allocated_peak(call: Callable[[], object]) -> int:
    """The same for PyTorch's CPU allocator: the highest sum of its allocations and frees."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    level = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@torch.no_grad()
def cuda_peak(call: Callable[[], object]) -> int:
    """The same for a graphics card that already has the inputs of ``call``."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
