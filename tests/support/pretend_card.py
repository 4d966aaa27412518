"""Graphics cards for machines without one: tensors that say cuda:0 and keep their values in main memory.

    with pretend_card.cards(memory=8 << 30) as machine:
        ...                  # torch.cuda.is_available(); .to("cuda") works; values are the CPU's
    machine.count.waits      # where the program waited for the card, and how often

Gradients are not computed: call it under no_grad or inference_mode.

What a card refuses is refused: an operator over tensors of two devices (a scalar on the CPU aside, as in PyTorch),
numpy() of its tensors, more memory than it has. Kernels, their rounding and the dtypes they know are the CPU's. It
needs a build of torch for the CPU.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator

import torch
from pretend_counts import Counts
from pretend_cuda import answers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

OPERATORS = torch.ops.aten

FROM_EVERYWHERE = {"copy_", "_to_copy", "copy", "lift_fresh", "_foreach_copy_", "set_"}
"""Operators that take tensors of two devices: they move values."""

INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}
"""A tensor on a card may be indexed by one on the CPU, which is moved; not the other way round."""

NO_SCALARS = {
    *("cat", "stack", "mm", "bmm", "addmm", "baddbmm", "convolution", "native_layer_norm", "native_group_norm"),
    *("embedding", "index_select", "gather", "scatter", "scatter_", "scaled_dot_product_attention"),
}
"""Operators that refuse even a scalar on the CPU."""

SET_DATA = torch.Tensor.data.__set__

WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim"}
"""Operators whose result the program has to wait for."""

NO_LAUNCH = {
    "empty",
    "empty_strided",
    "new_empty",
    "empty_like",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
    "alias",
}
"""Operators that run nothing on a card, beside views."""

_machine: Machine | None = None
"""The one in force."""


class CardTensor(torch.Tensor):
    """A tensor on a pretended card; ``on_cpu`` holds its values."""

    @staticmethod
    def __new__(cls, real: torch.Tensor, card: int = 0):
        shape = {"strides": real.stride(), "storage_offset": real.storage_offset()}
        kind = {"dtype": real.dtype, "layout": real.layout, "device": torch.device("cuda", card)}
        return torch.Tensor._make_wrapper_subclass(cls, real.shape, **shape, **kind, requires_grad=False)

    def __init__(self, real: torch.Tensor, card: int = 0):
        assert not isinstance(real, CardTensor)
        self.on_cpu, self.card = real, card
        if _machine is not None:
            _machine.hold(real.untyped_storage(), card)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        become(self, other)

    def untyped_storage(self):
        return self.on_cpu.untyped_storage()

    def data_ptr(self):
        return self.on_cpu.data_ptr()

    def is_pinned(self, *_):
        return False

    def tolist(self):
        return self.cpu().tolist()

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __index__(self):
        return int(self.item())

    def numpy(self, **_):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_, **__):
        return self.numpy()

    def contiguous(self, memory_format=torch.contiguous_format):
        if self.is_contiguous(memory_format=memory_format):
            return self
        return OPERATORS.clone(self, memory_format=memory_format)

    def copy_(self, other, non_blocking=False):
        return OPERATORS.copy_(self, other, non_blocking)

    def __getitem__(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        _check_indices(self, parts)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            found = self.on_cpu[tree_map(real, index)]
        return CardTensor(found, self.card)

    def __setitem__(self, index, value):
        parts = index if isinstance(index, tuple) else (index,)
        _check_indices(self, parts)
        if isinstance(value, torch.Tensor) and not isinstance(value, CardTensor) and value.dim():
            _machine.count.move(value, True, False)
        elif isinstance(value, CardTensor):
            check_devices("[]=", "[]=", [self, value], [self, value])
        _machine.count.launch("[]=")
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            self.on_cpu[tree_map(real, index)] = real(value)

    def __repr__(self, **_):
        return f"CardTensor({self.on_cpu!r})"

    def __deepcopy__(self, memo):
        return CardTensor(self.on_cpu.clone(), self.card)


def _check_indices(tensor: CardTensor, parts: tuple) -> None:
    """Count what an index in brackets asks for; of another card's tensors it is refused."""
    for index in (part for part in parts if isinstance(part, torch.Tensor)):
        if isinstance(index, CardTensor) and index.card != tensor.card:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
        _machine.count.launch("[]")
        if index.dtype in (torch.bool, torch.uint8):
            _machine.count.wait("index by a mask")
        elif not isinstance(index, CardTensor) and index.dim():
            _machine.count.move(index, True, False)
        elif isinstance(index, CardTensor) and not index.dim():
            _machine.count.wait("index by a scalar of the card")


def become(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """``tensor.data = other`` where one of them is on a card: PyTorch lets a tensor move in place, a class does not."""
    made = other.detach()
    if isinstance(tensor, torch.nn.Parameter):
        made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    torch.utils.swap_tensors(tensor, made)


def real(value):
    return value.on_cpu if isinstance(value, CardTensor) else value


def operate(func, args, kwargs):
    """One operator, over the values; RuntimeError where a card would refuse it."""
    name = func._schema.name.split("::")[1]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    cards = [t for t in tensors if isinstance(t, CardTensor)]
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    if not cards and (target is None or target.type != "cuda"):
        return func(*args, **kwargs)
    check_devices(func, name, tensors, cards)
    machine = _machine
    if machine is not None:
        _count(machine.count, func, name, args, kwargs, target)
    card = cards[0].card if cards else 0
    if target is not None and target.type == "cuda":
        card = machine.current if target.index is None else target.index
    given = {**tree_map(real, kwargs)}
    if target is not None:
        given["device"] = machine.values if target.type == "cuda" else target
    given.pop("pin_memory", None)
    if machine is not None and machine.values == "meta":
        if name == "copy_" and not isinstance(args[0], CardTensor):
            return args[0]
        if target is not None and target.type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
    with _disable_current_modes():
        out = func(*tree_map(real, args), **given)
    return _result(func, args, kwargs, out, card, stays=target is None or target.type == "cuda")


def check_devices(func, name: str, tensors: list, cards: list) -> None:
    """RuntimeError for tensors of two devices, in the words of PyTorch and with the shape of the stray one."""
    first, indices = cards[0] if cards else None, name in INDEXING
    if first is None or name in FROM_EVERYWHERE:
        return
    if indices and isinstance(tensors[0], CardTensor):
        return
    for other in tensors:
        scalar = other.dim() == 0 and not isinstance(other, CardTensor) and name not in NO_SCALARS and not indices
        if other.device != first.device and other.device.type != "meta" and not scalar:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {first.device} and "
                f"{other.device}! (in {func}; of the shapes {[list(t.shape) for t in tensors]})"
            )


def _result(func, args, kwargs, out, card: int, stays: bool):
    """What an operator gave as a tensor of the card; what was written in place is the tensor that was given."""
    written = _written(func, args, kwargs)
    if any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns):
        return written[0] if len(func._schema.returns) == 1 else tuple(written)
    if not stays:
        return out
    return tree_map(lambda t: CardTensor(t, card) if isinstance(t, torch.Tensor) else t, out)


def _written(func, args, kwargs) -> list:
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            found += value if isinstance(value, (list, tuple)) else [value]
    for value in found:
        if isinstance(value, CardTensor) and value.on_cpu.shape != value.shape:
            raise NotImplementedError(f"{func} changed the shape of a pretended card's tensor in place")
    return found


def _count(count: Counts, func, name: str, args, kwargs, target) -> None:
    masks = args[1] if name in INDEXING else ()
    if moved := _moved(name, args, target):
        asynchronous = kwargs.get("non_blocking", args[2:3] == (True,))
        return count.move(*moved, bool(asynchronous))
    if not func.is_view and name not in NO_LAUNCH:
        count.launch(str(func))
    if name in WAITING or f"{name}.{func._overloadname}" == "repeat_interleave.Tensor":
        count.wait(name)
    elif any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in masks):
        count.wait("index by a mask")


def _moved(name: str, args, target) -> tuple | None:
    """What an operator moves between a card and main memory, and whether to the card."""
    if name == "copy_" and isinstance(args[0], CardTensor) != isinstance(args[1], CardTensor):
        return args[1], isinstance(args[0], CardTensor)
    if name != "_to_copy" or (target is not None and target.type == "meta"):
        return None
    there = isinstance(args[0], CardTensor)
    goes = there if target is None else target.type == "cuda"
    return None if goes == there else (args[0], goes)


class _Operators(TorchDispatchMode):
    """Operators that make tensors on a card; those of CardTensor arrive here too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if other := _of_another_class(args, kwargs):
            with self:
                return other.__torch_dispatch__(func, types, args, kwargs)
        if _is_composite(func):  # of tensors made in inference mode; others arrive in parts
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return operate(func, args, kwargs)


def _of_another_class(args, kwargs) -> type | None:
    """A class of tensors that hold others and have their own operators (ComfyUI's QuantizedTensor), if one is given."""
    plain = {torch.Tensor, torch.nn.Parameter, CardTensor}
    tensors = (t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
    return next((type(t) for t in tensors if type(t) not in plain and hasattr(t, "__tensor_flatten__")), None)


SPELT = {"__invert__": "bitwise_not"}
"""Operators that Python's name of a method is not."""


def _is_composite(func) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


class _Functions(TorchFunctionMode):
    """What has to be done before an operator is reached: what asks a real device, and fused attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.device and args and isinstance(args[0], int):
            return torch.device("cuda", args[0])
        if func == SET_DATA and isinstance(args[1], CardTensor):
            return become(*args)
        if name == "pin_memory" and isinstance(args[0], torch.Tensor):
            return _machine.count.pin(args[0].clone())
        if name == "is_pinned":
            return _machine.count.is_pinned(args[0])
        if kwargs.get("device") in ("cuda", torch.device("cuda")):
            kwargs = {**kwargs, "device": torch.device("cuda", _machine.current)}
        if name in ("to", "cuda") and args and isinstance(args[0], torch.Tensor):
            args = _with_index(name, args)
        elif func is torch.nn.functional.scaled_dot_product_attention and any(
            isinstance(t, CardTensor) for t in tree_leaves((args, kwargs))
        ):
            return _attention(*args, **kwargs)
        elif func is torch.nn.functional.rms_norm and isinstance(args[0], CardTensor):
            return _rms_norm(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:  # a method that asks a real device before it calls its operator
            operator = getattr(OPERATORS, SPELT.get(name, name), None)
            if "not linked with support for cuda" not in str(error) or operator is None:
                raise
        return operator(*args, **kwargs)


def _with_index(name: str, args: tuple) -> tuple:
    """The arguments of ``to`` or ``cuda``, whose device has a number."""
    card = torch.device("cuda", _machine.current)
    if name == "cuda" and len(args) == 1:
        return (args[0], card)
    numbers = (torch.device("cuda", a) if type(a) is int else a for a in args[1:])
    return (args[0], *(card if a in ("cuda", torch.device("cuda")) else a for a in numbers))


def _rms_norm(x, shape, weight=None, eps=None):
    """One kernel, as torch 2.9 has it on cards, and no maps in memory beside its result."""
    check_devices("rms_norm", "rms_norm", [t for t in (x, weight) if t is not None], [x])
    _machine.count.launch("rms_norm")
    with _disable_current_modes():
        out = torch.nn.functional.rms_norm(real(x), shape, real(weight), eps)
    return CardTensor(out, x.card)


def _attention(query, key, value, attn_mask=None, **options):
    """Fused attention: one kernel, and no maps in memory."""
    parts = [t for t in (query, key, value, attn_mask) if t is not None]
    function = torch.nn.functional.scaled_dot_product_attention
    check_devices(function, "scaled_dot_product_attention", parts, [t for t in parts if isinstance(t, CardTensor)])
    _machine.count.launch("scaled_dot_product_attention")
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        out = function(real(query), real(key), real(value), attn_mask=real(attn_mask), **options)
    return CardTensor(out, parts[0].card)


class Machine:
    """Cards, what they hold and what was asked of them."""

    def __init__(self, memory: int, capability: tuple[int, int], cards: int, values: str = "cpu"):
        self.values = values
        self.memory, self.capability, self.cards, self._thread = memory, capability, cards, threading.local()
        self.count = Counts()
        self.used, self.peak = [0] * cards, [0] * cards
        self._held = weakref.WeakSet()

    @property
    def current(self) -> int:
        """The card of this thread."""
        return getattr(self._thread, "card", 0)

    @current.setter
    def current(self, card: int) -> None:
        self._thread.card = card

    @contextlib.contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """torch's modes are a thread's: one that was started beside ours needs its own."""
        with torch.no_grad(), _Functions(), _Operators():
            yield

    def hold(self, storage, card: int) -> None:
        """Count a storage as long as it exists; OutOfMemoryError where it does not fit."""
        if storage in self._held:
            return
        size = storage.nbytes()
        if self.used[card] + size > self.memory:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes; of {self.memory} {self.used[card]} are in use"
            )
        self._held.add(storage)
        self.used[card] += size
        self.peak[card] = max(self.peak[card], self.used[card])
        weakref.finalize(storage, self._release, size, card)

    def _release(self, size: int, card: int) -> None:
        self.used[card] -= size

    def begin(self) -> None:
        """Count from now on."""
        self.count.clear()
        self.peak = list(self.used)

    def taken(self) -> Counts:
        """The counts since ``begin``, to keep."""
        return self.count.copy()


@contextlib.contextmanager
def cards(
    memory: int = 80 << 30, capability: tuple[int, int] = (9, 0), count: int = 1, values: str = "cpu"
) -> Iterator[Machine]:
    """A machine with ``count`` cards of ``memory`` bytes each.

    With ``values`` "meta" nothing is computed: models of any size run at once, and what comes back is zeros.
    """
    global _machine
    before, _machine = _machine, Machine(memory, capability, count, values)
    torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        stack.enter_context(answers(_machine))
        stack.enter_context(_new_parameters())
        stack.enter_context(_Functions())
        stack.enter_context(_Operators())
        try:
            yield _machine
        finally:
            _machine = before


@contextlib.contextmanager
def _new_parameters() -> Iterator[None]:
    """Module.to makes Parameters anew: one of the CPU cannot become another class in place."""
    lifting, future = torch._C._only_lift_cpu_tensors(), torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") makes its values on the CPU
    future.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        future.set_overwrite_module_params_on_conversion(before)
        torch._C._set_only_lift_cpu_tensors(lifting)
