"""Calls of a network that wait less for the program around its kernels: torch.compile of whole blocks, or CUDA graphs.

Both act within a call and leave the module as it is, so that one module may be called with and without them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch

from . import compiled_encoder, compiled_video

logger = logging.getLogger(__name__)

MODES = ("blocks", "off", "graphs")
SETTING = "SANA_NODES_COMPILE"
"""The environment variable that sets a mode for every model that is loaded."""

BACKEND = "inductor"
"""What compiles blocks, by torch.compile's name for it."""

GRAPHS = 128
"""Of blocks of one class. torch.compile by itself runs a ninth as it is, and says so in the log alone: the sizes of
DC-AE's layers and of the models of a session are more."""

NEEDS = (
    "Sana Compile, mode blocks: torch.compile failed here ({}). It needs Triton on a card and "
    "a C++ compiler on a processor; set mode to off"
)
NO_GRAPHS = "Sana Compile, mode graphs: {}; the model runs without CUDA graphs"


class Acceleration(Protocol):
    def call(self, forward: Callable, inputs: dict) -> Any:
        """``forward(**inputs)``."""

    def release(self) -> None:
        """Free what it holds of a device."""


def parse_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
    return mode


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """What is compiled of a network: the blocks of a transformer, the layers of Gemma-2 and of a decoder.

    Of LTX-2's decoder nothing: streaming runs its convolutions one by one, over another number of frames at each piece.
    """
    if hasattr(module, "transformer_blocks"):
        return list(module.transformer_blocks)
    if type(module).__name__ == "Gemma2Model":
        return list(module.layers)
    if type(module).__name__ == "AutoencoderKLWan":
        return compiled_video.layers_of(module.decoder)
    if type(module).__name__ == "AutoencoderDC":
        return [layer for stage in module.decoder.up_blocks for layer in stage]
    return []


class CompiledBlocks:
    """torch.compile of each block. Blocks of one kind and shape share a graph, and so do prompts of any length."""

    def __init__(self, module: torch.nn.Module, backend: Any = None):
        self._calls = [(part, _compiled(part, backend or BACKEND)) for part in blocks_of(module)]

    def call(self, forward: Callable, inputs: dict) -> Any:
        with self.active():
            return forward(**inputs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the blocks are called compiled; RuntimeError where that cannot be done here."""
        from torch._dynamo import config
        from torch._dynamo.exc import TorchDynamoException

        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # in older torch
        before = [part._compiled_call_impl for part, _ in self._calls]
        try:
            for part, call in self._calls:
                part._compiled_call_impl = call
            with config.patch({limit: max(GRAPHS, getattr(config, limit))}):
                yield
        except TorchDynamoException as error:
            raise RuntimeError(NEEDS.format(_reason(error))) from error
        finally:
            for (part, _), call in zip(self._calls, before):
                part._compiled_call_impl = call

    def release(self) -> None:
        """A compiled block holds nothing: its weights are arguments."""


def _compiled(part: torch.nn.Module, backend: Any) -> Callable:
    if hasattr(part, "self_attn"):
        return compiled_encoder.compiled_layer(part, backend)
    if type(part).__name__ in compiled_video.KEPT:
        return compiled_video.compiled_layer(part, backend)
    return _of_any_length(torch.compile(part._call_impl, backend=backend))


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


LENGTH = {2: 1, 3: -1}
"""Of a block's arguments by index: the dimension along which a prompt's length lies, of its states and of its mask."""


def _of_any_length(call: Callable) -> Callable:
    def run(*arguments, **named):
        for index, dim in LENGTH.items():
            value = arguments[index] if index < len(arguments) else None
            for tensor in value if isinstance(value, tuple) else (value,):
                if tensor is not None:
                    compiled_encoder.any_length(tensor, tensor.ndim - 2 if tensor.ndim == 4 else dim % tensor.ndim)
        return call(*arguments, **named)

    return run


class CudaGraphs:
    """CUDA graphs of whole calls, one for each set of shapes; ``capture`` makes one of a call and its inputs.

    A graph reads and writes where its tensors were when it was made: inputs are copied there, and weights that have
    moved since end it. They are freed with the weights (:func:`release`).
    """

    def __init__(self, module: torch.nn.Module, capture: Callable | None = None):
        self._module, self._capture = module, capture or captured
        self._weights: tuple[int, ...] = ()
        self._graphs: dict[tuple, Callable[[dict], Any]] = {}
        self._reason: str | None = None
        _with_graphs.add(self)

    def call(self, forward: Callable, inputs: dict) -> Any:
        if "block" in inputs:
            self._refuse("a call of a long video changes its run's state")
        if self._reason is not None:
            return forward(**inputs)
        given, inputs = inputs, {name: value for name, value in inputs.items() if name != "kept"}  # computed again
        weights = tuple(parameter.data_ptr() for parameter in self._module.parameters())
        if weights != self._weights:
            self.release()
            self._weights = weights
        key = (*_attention_of(self._module), *sorted((name, _kind(value)) for name, value in inputs.items()))
        if key not in self._graphs:
            try:
                self._graphs[key] = self._capture(forward, inputs, self._module)
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                self._refuse(_reason(error))
                return forward(**given)
        return self._graphs[key](inputs)

    def _refuse(self, reason: str) -> None:
        """Run without graphs from now on, and say once why."""
        if self._reason is None:
            self._reason = reason
            logger.warning(NO_GRAPHS.format(reason))

    def release(self) -> None:
        self._graphs.clear()

    def belongs_to(self, module: torch.nn.Module) -> bool:
        return self._module is module


_with_graphs: WeakSet[CudaGraphs] = WeakSet()


def release(module: torch.nn.Module) -> None:
    """Free the graphs of a module, whose weights leave its device."""
    for graphs in list(_with_graphs):
        if graphs.belongs_to(module):
            graphs.release()


def _attention_of(module: torch.nn.Module) -> tuple:
    """What a graph depends on of the blocks: perturbed self-attention, and who computes cross-attention."""
    blocks = module.transformer_blocks
    perturbed = tuple(type(block.attn1.processor) for block in blocks)
    return perturbed, tuple(getattr(getattr(block.attn2, "processor", None), "attend", None) for block in blocks)


def _kind(value: Any) -> str:
    """What a graph depends on of an input: of a tensor its shape, dtype and device, of others the value."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_kind, value))})"
    return f"{tuple(value.shape)} {value.dtype} {value.device}" if isinstance(value, torch.Tensor) else repr(value)


def captured(forward: Callable, inputs: dict, module: torch.nn.Module) -> Callable[[dict], Any]:
    """A CUDA graph of a call; what it returns is overwritten by the next, so it is copied."""
    fixed = {name: _copied(value) for name, value in inputs.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is chosen or kept at a first call is not part of a graph
        for _ in range(2):
            forward(**fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forward(**fixed)
    kept = [dict(part.__dict__.get("kept") or {}) for part in module.modules()]  # tables that the graph reads

    def replay(given: dict) -> Any:
        for name, value in given.items():
            _copy_into(fixed[name], value)
        graph.replay()
        return _copied(out)

    replay.kept = kept  # type: ignore[attr-defined]
    return replay


def _copied(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_copied, value))
    return value.clone(memory_format=torch.contiguous_format) if isinstance(value, torch.Tensor) else value


def _copy_into(fixed: Any, value: Any) -> None:
    if isinstance(value, (tuple, list)):
        for target, given in zip(fixed, value):
            _copy_into(target, given)
    elif isinstance(value, torch.Tensor):
        fixed.copy_(value)


def accelerated(module: torch.nn.Module, mode: str, device: torch.device, part: str) -> Acceleration | None:
    """What a mode is for a module on a device; None for calls as they are. ``part`` names it in the log."""
    if parse_mode(mode) == "off":
        return None
    if mode == "graphs":
        if device.type != "cuda" or not torch.cuda.is_available():
            logger.warning(NO_GRAPHS.format(f"there is no CUDA on this device ({device})"))
            return None
        return CudaGraphs(module) if hasattr(module, "transformer_blocks") else None
    if not blocks_of(module):
        logger.info("Sana Compile leaves %s as it is: its layers take other shapes at each piece of a video", part)
        return None
    return CompiledBlocks(module)


def set_mode() -> str:
    """The mode that SETTING gives to every model; ValueError for one that there is not."""
    mode = os.environ.get(SETTING, "off")
    if mode not in MODES:
        raise ValueError(f"the environment variable {SETTING} is {mode!r}; choose one of {', '.join(MODES)}")
    return mode


def by_setting(module: torch.nn.Module, device: torch.device, part: str) -> Acceleration | None:
    return accelerated(module, set_mode(), device, part)


def called(acceleration: Acceleration | None, forward: Callable, inputs: dict) -> Any:
    """``forward(**inputs)``, accelerated if it can be."""
    return forward(**inputs) if acceleration is None else acceleration.call(forward, inputs)
