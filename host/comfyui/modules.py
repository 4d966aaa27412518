"""comfy's operations for modules that diffusers and transformers built."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

from ...networks import precision
from ...networks.int8 import Int8Linear
from ...networks.text_encoder import TokenEmbedding

logger = logging.getLogger(__name__)

_ops = comfy.ops.manual_cast

CASTING = {
    torch.nn.Linear: _ops.Linear,
    torch.nn.Conv2d: _ops.Conv2d,
    torch.nn.Conv3d: _ops.Conv3d,
    torch.nn.LayerNorm: _ops.LayerNorm,
    torch.nn.GroupNorm: _ops.GroupNorm,
}
"""torch's layers to comfy's, whose weights ComfyUI can offload, cast and patch separately."""


class CastingEmbedding(TokenEmbedding, comfy.ops.CastWeightBiasOp):
    """Gemma's token embedding as a layer that ComfyUI may leave in main memory, where its rows are looked up then.

    Else the whole table, 1.2 GB, would be uploaded for each prompt with dynamic memory (0.33). A table that a node
    changes is cast and patched as a whole.
    """

    comfy_cast_weights = True
    bias = None

    def forward(self, ids):
        if not self.weight_function and getattr(self, "weight_lowvram_function", None) is None:
            return super().forward(ids)
        dtype = self.compute_dtype or self.weight.dtype
        table, _ = comfy.ops.cast_bias_weight(self, device=ids.device, dtype=dtype)
        return self.scaled(torch.nn.functional.embedding(ids, table))


SENT_ALONG = 16 * 1024
"""Bytes of a layer up to which ComfyUI's dynamic memory sends it to the card with each call of a model."""


class CastingInt8(Int8Linear, comfy.ops.CastWeightBiasOp):
    """An eight-bit layer that dynamic memory (0.33) keeps on the card, as ComfyUI's own layers.

    Of other layers it uploads the weights again at each call.
    """

    comfy_cast_weights = True

    def forward(self, x):
        if not hasattr(self, "_v"):  # the range of the card's memory that ComfyUI gave it
            return super().forward(x)
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self, device=x.device, dtype=torch.int8, bias_dtype=x.dtype, offloadable=True
        )
        out = self.product(x, weight, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out

    def use_floating_weight(self) -> None:
        """Leave dynamic memory until the model is loaded again: a weight with a LoRA is a floating-point one."""
        if hasattr(self, "_v"):
            import comfy_aimdo.model_vbar  # is there where dynamic memory is

            comfy_aimdo.model_vbar.vbar_unpin(self._v)
            del self._v
        self._v_signature = self.weight_lowvram_function = None


def use_comfy_ops(
    module: torch.nn.Module,
    weight_dtype: torch.dtype | None,
    compute_dtype: torch.dtype,
    called_whole: bool = True,
    dynamic: bool = False,
) -> torch.nn.Module:
    """Give a module comfy's layers, so that ComfyUI manages its memory. In place.

    ``called_whole``: every call begins with the module's own forward. ``dynamic``: see loads_dynamically.
    """
    precision.use_casting_layers(module, CASTING, weight_dtype, compute_dtype)
    own: dict[torch.nn.Module, None] = {}  # in order, and quick to ask
    for part in module.modules():
        if type(part) is TokenEmbedding:
            part.__class__ = CastingEmbedding
        elif dynamic and type(part) is Int8Linear and comfy.model_management.module_size(part) > SENT_ALONG:
            part.__class__ = CastingInt8
        elif hasattr(part, "comfy_cast_weights"):
            if all(parameter.dtype == compute_dtype for parameter in part.parameters(recurse=False)):
                part.comfy_cast_weights = False  # ComfyUI sets it on what it offloads or patches at each use
        elif part._parameters or part._buffers:
            own[part] = None
    for followed in [module] if called_whole else module.modules():
        if followers := own if called_whole else [one for one in (followed, *followed.children()) if one in own]:
            followed.register_forward_pre_hook(partial(_follow_input, followers), with_kwargs=True)
    return module


def _follow_input(parts, module, args, kwargs) -> None:
    """Move the tensors that ``parts`` hold themselves to the device of a call's input.

    ComfyUI moves comfy's layers at each use. Of a model that it loads in part it leaves the other tensors
    on the CPU: diffusers' norms, the modulation tables of blocks, position embeddings. A norm's weight is also
    used where the norm itself is not called (networks.fast_layers).
    """
    inputs = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
    device = next((value.device for value in inputs), None)
    if device is None:
        return
    for part in parts:
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.device != device:
                part._parameters[name] = torch.nn.Parameter(parameter.to(device), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.device != device:
                part._buffers[name] = buffer.to(device)


def uses_bf16(device: torch.device, fp32_flag: str) -> bool:
    """Whether weights of bfloat16 are computed in it on a device, by ComfyUI's flags and the device's abilities.

    ``fp32_flag``: the part's own flag, such as fp32_vae. ComfyUI never chooses bfloat16 on a processor; torch
    says which have it.
    """
    flags = comfy.cli_args.args
    if flags.force_fp32 or getattr(flags, fp32_flag):
        return False
    on_processor = device.type == "cpu" and precision.native_bf16(device)
    return on_processor or comfy.model_management.should_use_bf16(device)


def log_compute_dtype(what: str, compute: torch.dtype, why: str = "float16 overflows in it") -> None:
    """One line in ComfyUI's log: the dtype that a model computes in, and why."""
    logger.info("%s computes in %s: %s", what, str(compute).removeprefix("torch."), why)


def patcher_class(dynamic: bool = True) -> type:
    """ComfyUI 0.33 selects the patcher at start (``dynamic`` offload or not); older versions have one."""
    plain = comfy.model_patcher.ModelPatcher
    return getattr(comfy.model_patcher, "CoreModelPatcher", plain) if dynamic else plain


def loads_dynamically(device: torch.device, disable_dynamic: bool = False) -> bool:
    """Whether the patcher of a model on a device has 0.33's dynamic memory."""
    dynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", ())
    return device.type != "cpu" and issubclass(patcher_class(not disable_dynamic), dynamic)


def set_reload(patcher, build: Callable, *arguments) -> None:
    """How ComfyUI 0.33 loads the model once more: for a second card, and without dynamic offload for hooks.

    ``build(*arguments, disable_dynamic=False)`` returns a patcher. Older versions do not reload.
    """
    patcher.cached_patcher_init = (build, arguments)
