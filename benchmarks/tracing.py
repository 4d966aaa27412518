"""The peak of PyTorch's allocated memory during a call, without a graphics card and without computing anything.

``traced_peak`` runs a call on meta tensors and counts the storages that live at once: a storage begins when an
operation returns it and ends when the last tensor on it is gone, so views, aliases and in-place operations count
once. Scaled dot-product attention counts as the fused kernel that it is on a card: its output alone. What a kernel
takes for itself while it runs (a convolution's workspace) is not seen. ``allocated_peak`` is the same of PyTorch's
real CPU allocator, from its profiler, and ``cuda_peak`` of a card.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _fused(query, key, value, *args, **kwargs):
        return query.new_empty(*query.shape[:-1], value.shape[-1])


class _Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
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
    """Bytes that ``call`` allocates at once on meta tensors, its result among them, what it was given not."""
    with _FusedAttention(), _Counting() as counting:
        result = call()
    peak = counting.peak
    del result
    return peak


@torch.no_grad()
def allocated_peak(call: Callable[[], object]) -> int:
    """The same of PyTorch's CPU allocator: the highest sum of its allocations and frees."""
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
    """The same of a card, where all that ``call`` was given already is."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
