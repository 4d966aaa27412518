"""Quantised weights that stay quantised: layers that hold ComfyUI's QuantizedTensor and multiply with it.

ComfyUI has such layers from 0.8.0 (comfy.ops.mixed_precision_ops, over comfy-kitchen). Where the device multiplies a
format natively, the input is quantised too. Elsewhere, and where a person or the file asks for full precision, the
weight is dequantised at each use, and the result is that of the dequantised weight.

SANA's feed-forward has half of its weights in convolutions of 1x1, and SANA-Video another part in convolutions along
time. ComfyUI has no packed convolutions, so both become products of matrices.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch.nn import functional

from ...model_loaders.files.checkpoint import Value
from ...model_loaders.quantised.formats import FLOAT8, MARK, QuantisedWeight
from ...networks.fast_layers import tokens_of_step
from ...networks.precision import PRODUCTS

LARGEST_FLOAT8 = 448.0

MERGED = (
    "this MODEL's weights are quantised, and ComfyUI cannot merge those: load it with weight_dtype bf16, which "
    "dequantises them"
)


def supported_formats() -> Mapping[str, str]:
    """The formats of which this ComfyUI has packed layers: names to layouts. None before 0.8.0."""
    if not hasattr(comfy.ops, "mixed_precision_ops"):
        return {}
    import comfy.quant_ops as known  # ComfyUI 0.3.64 has no such file

    rows = {name: row["comfy_tensor_layout"] for name, row in known.QUANT_ALGOS.items()}
    return {name: layout for name, layout in rows.items() if known.get_layout_class(layout) is not None}


def _natively(name: str, device: torch.device) -> bool:
    """Whether a device multiplies a format itself, as ComfyUI says; of int8 comfy-kitchen says it."""
    if device.type == "cpu":
        return False
    if name == "int8_tensorwise":
        import comfy.quant_ops as known

        return known.get_layout_class(supported_formats()[name]).supports_fast_matmul()
    question = {"nvfp4": "supports_nvfp4_compute", "mxfp8": "supports_mxfp8_compute"}.get(name, "supports_fp8_compute")
    return getattr(comfy.model_management, question)(device)


class Packed:
    """A layer with a packed weight; ``floating_shape``: the shape of the weight that it stands for.

    ``scales_input``: its input is quantised to float8 and the file has no scale for it. ComfyUI would take 1, which
    clips at 448: each input's own largest value sets it instead.
    """

    floating_shape: tuple[int, ...]
    scales_input = False
    comfy_patched_weights: bool
    bias: torch.Tensor | None
    weight: Any
    _full_precision_mm: bool

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if not self.scales_input:
            return super().forward(x)  # type: ignore[misc]
        self.input_scale = x.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny) / LARGEST_FLOAT8
        out = super().forward(x)  # type: ignore[misc]
        self.input_scale = None
        return out

    def forward(self, x, *_, **__):
        """[..., channels]"""
        return self.product(x)

    def _forward(self, input, weight, bias):
        """ComfyUI's last step of a product. An int8 weight would quantise its input here, whatever was asked for."""
        if self._full_precision_mm and hasattr(weight, "_qdata"):
            weight = weight.dequantize()
        return super()._forward(input, weight, bias)  # type: ignore[misc]

    def state_dict(self, *args, destination=None, prefix="", **kwargs):
        """The packed tensors and the layer's mark, with the shape of a convolution, as quantised.formats reads them."""
        state = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)  # type: ignore[misc]
        key = f"{prefix}{MARK}"
        if key not in state:  # a LoRA of another shape made the weight a floating one
            return state
        state.update(self.weight.state_dict(f"{prefix}weight"))  # ComfyUI 0.8.0 leaves the tensor as it is
        if len(self.floating_shape) > 2:
            options = {**json.loads(bytes(state[key].tolist())), "shape": list(self.floating_shape)}
            state[key] = _mark(options)
        return state

    @property
    def weight_scale(self):
        """Asked for by ComfyUI where it merges weights, key by key."""
        raise ValueError(MERGED)

    weight_scale_2 = comfy_quant = weight_scale


class PackedPixels(Packed):
    """A convolution of 1x1 on [B, channels, H, W]."""

    def forward(self, x, *_, **__):
        pixels = x.movedim(1, -1)
        out = self.product(pixels.flatten(0, -2))
        return out.unflatten(0, pixels.shape[:-1]).movedim(-1, 1)


class PackedTimes(Packed):
    """A convolution along time, of an odd number of frames, on [B, channels, frames, pixels]."""

    def forward(self, x, *_, **__):
        taps = self.floating_shape[2]
        frames = functional.pad(x.movedim(1, -1), (0, 0, 0, 0, taps // 2, taps // 2))
        step = max(1, tokens_of_step(x.device) // x.shape[-1])
        out = [self._some(frames[:, n : n + step + taps - 1], taps) for n in range(0, x.shape[2], step)]
        return torch.cat(out, 1).movedim(-1, 1)

    def _some(self, frames: torch.Tensor, taps: int) -> torch.Tensor:
        count = frames.shape[1] - taps + 1
        near = torch.stack([frames[:, tap : tap + count] for tap in range(taps)], -1).flatten(-2)
        return self.product(near.flatten(0, 2)).unflatten(0, near.shape[:3])


def state_for_saving(patcher, usual: Callable, network: torch.nn.Module, prefix: str) -> dict[str, Any]:
    """A network's weights by name, each patched when it is written. ``usual``: how ComfyUI lists them.

    0.33 lists a packed weight that is not whole on the card as a Parameter for each stored tensor, which torch refuses
    for integers: those are listed here.
    """
    waiting = {name: layer for name, layer in network.named_modules() if isinstance(layer, Packed) and _is_lazy(layer)}
    if not waiting or not hasattr(comfy.model_patcher, "LazyCastingQuantizedParam"):
        return usual(network, prefix)
    for layer in waiting.values():
        layer.comfy_patched_weights = True  # so they are listed as they are stored
    try:
        listed = usual(network, prefix)
    finally:
        for layer in waiting.values():
            layer.comfy_patched_weights = False
    for name, layer in waiting.items():
        listed.update(_listed(patcher, layer, f"{name}.weight", prefix))
        if (key := f"{prefix}{name}.bias") in patcher.patches:
            listed[f"{name}.bias"] = comfy.model_patcher.LazyCastingParam(patcher, key, layer.bias)
    return listed


def _listed(patcher, layer: Packed, name: str, prefix: str) -> dict[str, torch.Tensor]:
    """The stored tensors of a weight; where nothing patches it, those of the file: dynamic memory may hold others."""
    key = f"{prefix}{name}"
    if key not in patcher.patches:
        stored = patcher.backup[key].weight if key in patcher.backup else layer.weight
        return stored.state_dict(name)
    caster = comfy.model_patcher.LazyCastingQuantizedParam(patcher, key)
    return {
        part: _piece_class()(caster, f"{prefix}{part}", value) for part, value in layer.weight.state_dict(name).items()
    }


def _is_lazy(layer: Packed) -> bool:
    """Whether a layer's weight is quantised, and not on the card with its patches."""
    return hasattr(layer.weight, "_qdata") and not getattr(layer, "comfy_patched_weights", False)


@cache
def _piece_class() -> type:
    class Piece(comfy.model_patcher.LazyCastingParamPiece):
        def __new__(cls, caster, state_dict_key, tensor):
            return torch.nn.Parameter.__new__(cls, tensor, requires_grad=False)

    return Piece


def _kind_of(layer: torch.nn.Module) -> type | None:
    """The class of what can stand for a layer; None for one whose weight cannot stay packed."""
    if isinstance(layer, torch.nn.Linear):
        return Packed
    if not isinstance(layer, torch.nn.Conv2d) or layer.groups != 1 or layer.stride != (1, 1):
        return None
    if layer.kernel_size == (1, 1) and layer.padding == (0, 0):
        return PackedPixels
    high, wide = layer.kernel_size
    along = wide == 1 and high % 2 == 1 and layer.padding == (high // 2, 0) and layer.dilation == (1, 1)
    return PackedTimes if along else None


def _parts(value: QuantisedWeight) -> dict[str, torch.Tensor] | None:
    """A layer's tensors as ComfyUI's layers load them; None where those cannot hold them."""
    parts = value.tensors()
    parts["weight"] = parts["weight"].flatten(1)
    scale = parts.get("weight_scale", torch.ones(()))
    if value.format.name in FLOAT8:
        if scale.numel() != 1:
            return None
        parts["weight"] = parts["weight"].view(FLOAT8[value.format.name])
        parts["weight_scale"] = scale.float().reshape(())
    elif value.format.block:
        tiles = -(-parts["weight"].shape[0] // 128) * 128
        parts["weight_scale"] = scale.reshape(tiles, -1)
    else:
        parts["weight_scale"] = scale.float().reshape(() if scale.numel() == 1 else (-1, 1))
    if "weight_scale_2" in parts:
        parts["weight_scale_2"] = parts["weight_scale_2"].float().reshape(())
    return parts


def packable(module: torch.nn.Module, quantised: Mapping[str, Value]) -> dict:
    """The weights that can stay packed in this ComfyUI, by name."""
    formats = supported_formats()
    return {name: value for name, value in quantised.items() if _can_stay(module, name, value, formats)}


def _can_stay(module: torch.nn.Module, name: str, value: Value, formats: Mapping[str, str]) -> bool:
    if not isinstance(value, QuantisedWeight) or value.format.name not in formats or not name.endswith(".weight"):
        return False
    return _kind_of(module.get_submodule(name.removesuffix(".weight"))) is not None and _parts(value) is not None


@cache
def _layer_class(kind: type, compute: torch.dtype, full_precision: bool, disabled: frozenset) -> type:
    ops = comfy.ops.mixed_precision_ops({"mixed_ops": True}, compute, full_precision, disabled)
    return type(f"{kind.__name__}Linear", (kind, ops.Linear), {})


def use_packed_layers(
    module: torch.nn.Module,
    packed: Mapping[str, QuantisedWeight],
    compute: torch.dtype,
    device: torch.device,
    products: str = PRODUCTS[0],
) -> torch.nn.Module:
    """Put layers with packed weights in place of those of ``packed``, in place. ``products``: precision.PRODUCTS."""
    disabled = frozenset(name for name in supported_formats() if not _natively(name, device))
    for name, value in packed.items():
        layer = module.get_submodule(name.removesuffix(".weight"))
        kind = _kind_of(layer)
        assert kind is not None, "packable leaves out such layers"
        new = _packed_layer(_layer_class(kind, compute, products != PRODUCTS[0], disabled), layer, value)
        owner, _, last = name.removesuffix(".weight").rpartition(".")
        setattr(module.get_submodule(owner), last, new)
    return module


def _packed_layer(made_class: type, layer: Any, value: QuantisedWeight) -> torch.nn.Module:
    matrix = layer.weight.flatten(1).shape
    made = made_class(matrix[1], matrix[0], bias=False)
    made.floating_shape = value.shape
    options = {name: value.options[name] for name in ("format", "full_precision_matrix_mult") if name in value.options}
    made.load_state_dict({**(_parts(value) or {}), MARK: _mark(options)}, strict=False)
    if layer.bias is not None:  # ComfyUI 0.8.0 adds it to native products as it is
        made.bias = torch.nn.Parameter(layer.bias.to(made.factory_kwargs["dtype"]), requires_grad=False)
    in_float8 = value.format.name in FLOAT8 and not made._full_precision_mm
    made.scales_input = in_float8 and "input_scale" not in value.parts
    return made.requires_grad_(False)


def _mark(options: Mapping) -> torch.Tensor:
    return torch.tensor(list(json.dumps(options).encode()), dtype=torch.uint8)
