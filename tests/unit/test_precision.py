"""What is computed in: asked of torch, one rule, cast once, logged."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from sana_nodes.host.embedded import devices
from sana_nodes.networks import precision
from sana_nodes.networks.text_encoder import TokenEmbedding

CPU = torch.device("cpu")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def machine(monkeypatch):
    """A machine as torch would tell of it: architecture, ATen's capability, and what is said to be there."""

    def make(architecture="x86_64", capability="AVX512", avx512_bf16=False, amx=False, mkldnn=True, limit=None):
        monkeypatch.setattr(precision.platform, "machine", lambda: architecture)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: mkldnn)
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        if limit:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        return precision.native_bf16(CPU)

    return make


@pytest.mark.parametrize(
    ("native", "told"),
    [
        (True, {"avx512_bf16": True}),
        (True, {"amx": True}),
        (False, {}),  # mkldnn says yes to AVX512 alone, where it converts
        (False, {"avx512_bf16": True, "capability": "AVX2"}),
        (False, {"avx512_bf16": True, "capability": "DEFAULT"}),
        (False, {"avx512_bf16": True, "limit": "AVX512_CORE_VNNI"}),
        (False, {"avx512_bf16": True, "limit": "avx2"}),
        (True, {"avx512_bf16": True, "limit": "AVX512_CORE_BF16"}),
        (True, {"architecture": "aarch64", "capability": "DEFAULT"}),
        (True, {"architecture": "arm64", "capability": "SVE256"}),
        (False, {"architecture": "aarch64", "capability": "DEFAULT", "mkldnn": False}),
    ],
)
def test_a_processor_has_bfloat16_where_torch_says_so(machine, native, told):
    assert machine(**told) is native


def test_a_torch_that_cannot_say_means_no(machine, monkeypatch):
    assert machine(avx512_bf16=True)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert precision.native_bf16(CPU) is False


NVIDIA = {
    "Maxwell": ((5, 2), F32),
    "Pascal": ((6, 1), F32),
    "Volta": ((7, 0), F32),
    "Turing": ((7, 5), F32),
    "Ampere": ((8, 0), BF16),
    "Ampere, consumer": ((8, 6), BF16),
    "Ada": ((8, 9), BF16),
    "Hopper": ((9, 0), BF16),
    "Blackwell": ((10, 0), BF16),
    "Blackwell, consumer": ((12, 0), BF16),
}
AMD = {
    "gfx803": F32,
    "gfx900": F32,
    "gfx906:sramecc+:xnack-": F32,
    "gfx1012": F32,
    "gfx1030": F32,
    "gfx908": BF16,
    "gfx90a:sramecc+:xnack-": BF16,
    "gfx942": BF16,
    "gfx950": BF16,
    "gfx1100": BF16,
    "gfx1151": BF16,
    "gfx1201": BF16,
}
APPLE = {"13.6": F32, "14.0": BF16, "15.1.1": BF16, "26.0": BF16, "": F32}
"""What weights of two bytes are computed in: a card that emulates bfloat16 is no faster for it."""


def computed_on(device: str) -> torch.dtype:
    native = precision.native_bf16(torch.device(device))
    assert precision.compute_dtype(F32, native) == F32
    assert precision.compute_dtype(F16, native) == precision.compute_dtype(BF16, native)
    return precision.compute_dtype(BF16, native)


@pytest.mark.parametrize("name", NVIDIA)
def test_nvidias_cards(monkeypatch, name):
    capability, expected = NVIDIA[name]
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert computed_on("cuda") == computed_on("cuda:1") == expected


@pytest.mark.parametrize("name", AMD)
def test_amds_cards(monkeypatch, name):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    assert computed_on("cuda") == AMD[name]


@pytest.mark.parametrize("version", APPLE)
def test_apples_cards(monkeypatch, version):
    monkeypatch.setattr(precision.platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    assert computed_on("mps") == APPLE[version]


@pytest.mark.parametrize("device", ["meta", "xpu", "hpu"])
def test_other_devices(device):
    assert computed_on(device) == F32


@pytest.mark.parametrize(
    "variable", ["ATEN_CPU_CAPABILITY=default", "ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2"]
)
def test_torchs_own_limits_are_kept_to(variable):
    code = "import torch\nfrom sana_nodes.networks import precision\nprint(precision.native_bf16(torch.device('cpu')))"
    settings = dict([variable.split("=")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **settings})
    if precision.platform.machine() == "x86_64":
        assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(("stored", "native", "computed"), [(BF16, True, BF16), (BF16, False, F32), (F32, True, F32)])
def test_the_rule(stored, native, computed):
    assert precision.compute_dtype(stored, native) == computed


def loaded(dtype: torch.dtype):
    module = torch.nn.Sequential(TokenEmbedding(5, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    return SimpleNamespace(module=module.to(dtype).requires_grad_(False), quantised={})


def dtypes(one) -> list[torch.dtype]:
    return [part.weight.dtype for part in one.module]


@pytest.mark.parametrize("native", [True, False])
def test_weights_are_cast_once_and_a_token_embedding_is_not(monkeypatch, native):
    monkeypatch.setattr(precision, "native_bf16", lambda device: native)
    one = loaded(BF16)
    compute = devices.prepare(one, None, CPU, "it")
    assert compute == (BF16 if native else F32) and dtypes(one) == [BF16, compute, compute]
    assert one.module(torch.tensor([1])).dtype == compute


def test_weights_are_cast_at_each_use_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(precision, "native_bf16", lambda device: False)
    monkeypatch.setattr(devices, "available_memory", lambda device: 2 * 4 * 19)
    one = loaded(BF16)
    assert devices.prepare(one, None, CPU, "it") == F32 and dtypes(one) == [BF16, BF16, F32]
    assert one.module(torch.tensor([1])).dtype == F32


def test_weights_stay_as_a_person_wants_them_stored(monkeypatch):
    monkeypatch.setattr(precision, "native_bf16", lambda device: False)
    one = loaded(F32)
    assert devices.prepare(one, F16, CPU, "it") == F32 and dtypes(one) == [F16, F16, F32]


def test_eight_bits_are_not_widened():
    layer = torch.nn.Linear(4, 4).requires_grad_(False)
    layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    assert precision.cast_once(layer, BF16, 2**40)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.bias.dtype == BF16


def test_memory_is_known_here():
    assert devices.available_memory(CPU) > 2**20


def test_one_line_for_each_part(host, reference, caplog):
    from sana_nodes import NODE_CLASS_MAPPINGS as nodes

    with caplog.at_level(logging.INFO):
        loader = nodes["SanaLoadPipeline"]()
        getattr(loader, loader.FUNCTION)("tiny", "default")
    lines = [record.getMessage() for record in caplog.records if " computes in " in record.getMessage()]
    assert len(lines) == 3 and sum("Gemma-2" in one for one in lines) == 1 and all("float32" in one for one in lines)


def test_the_tiny_models_are_float32():
    """What the exactness tests rest on: float32 weights are computed in float32, whatever the processor has."""
    assert precision.compute_dtype(precision.stored_dtype(tiny.transformer()), True) == F32
