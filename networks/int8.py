"""Eight-bit weights with bitsandbytes: LLM.int8(), Dettmers et al. 2022.

The kernels are bitsandbytes' and the result equals that of its Linear8bitLt with transformers' threshold. There are two
differences. The integer products are scaled in float32: Linear8bitLt writes float16 on a graphics card, which overflows
in Gemma-2. Weight and scales are a parameter and a buffer, so they are moved, loaded and patched with the module:
Linear8bitLt keeps them in a state that does not move with its parent module.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch.nn import functional

THRESHOLD = 6.0
"""Input columns with a larger value are not quantised: the paper's outliers, with transformers' default."""

STEPS = 127


@cache
def unavailable_reason() -> str | None:
    """Why bitsandbytes' eight-bit kernels are not available, or None. Imports bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed (pip install bitsandbytes)"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        layer = quantise(torch.nn.Linear(32, 32).to(device).requires_grad_(False))
        layer(torch.ones(2, 32, device=device))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return f"bitsandbytes does not run on this machine's {device} ({reason})"
    return None


class Int8Linear(torch.nn.Linear):
    """A Linear with an int8 weight [out, in]; ``weight_scale`` [out]: the largest magnitude of each row, float32.

    An input [..., in] is quantised to int8 by rows, except for its outliers. A weight with a LoRA is a
    floating-point weight and used without quantisation.
    """

    def forward(self, x):
        return self.product(x, self.weight, self.bias)

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer's answer with its weight and bias where ``x`` is."""
        bias = None if bias is None else bias.to(x.dtype)
        if weight.dtype != torch.int8:
            return functional.linear(x, weight.to(x.dtype), bias)
        from bitsandbytes import functional as kernels

        rows = x.reshape(-1, x.shape[-1])
        values, largest, outliers = kernels.int8_vectorwise_quant(rows.to(torch.float16), threshold=THRESHOLD)
        out = kernels.int8_linear_matmul(values, weight).float()
        out *= largest[:, None] / STEPS * (self.weight_scale / STEPS)
        if outliers is not None and outliers.numel():
            out += rows[:, outliers].float() @ self.convert_weight(weight[:, outliers]).t()
        out = out.to(x.dtype) if bias is None else out.to(x.dtype) + bias
        return out.reshape(*x.shape[:-1], -1)

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        """The floating-point weight of int8 values; ComfyUI calls this before it applies a LoRA."""
        if self.weight.dtype != torch.int8:
            return weight
        return weight.float() * (self.weight_scale.to(weight.device) / STEPS)[:, None]

    def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **_):
        """ComfyUI sets a patched weight with this; it stays floating-point, because the range of its rows changed."""
        if return_weight:
            return weight
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


def quantise(layer: torch.nn.Linear) -> Int8Linear:
    """Turn a Linear into an Int8Linear, in place."""
    from bitsandbytes import functional as kernels

    values, largest, _ = kernels.int8_vectorwise_quant(layer.weight.data.to(torch.float16))
    layer.__class__ = Int8Linear
    layer.weight = torch.nn.Parameter(values, requires_grad=False)
    layer.register_buffer("weight_scale", largest)
    return layer


def floating_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with int8 weights dequantised to the dtype of most other weights, for a file that is portable.

    Layers with ComfyUI's mark (comfy_quant) stay as they are.
    """
    scales = {key for key in state if key.endswith(".weight_scale")}
    scales -= {f"{key.removesuffix('.comfy_quant')}.weight_scale" for key in state if key.endswith(".comfy_quant")}
    others = [value.dtype for key, value in state.items() if key not in scales and value.is_floating_point()]
    dtype = max(others, key=others.count, default=torch.float32)
    saved = {}
    for key in state.keys() - scales:
        value = state[key]
        if value.dtype == torch.int8 and f"{key}_scale" in scales:
            value = (value.float() * (state[f"{key}_scale"] / STEPS)[:, None]).to(dtype)
        saved[key] = value
    return saved
