"""What the pack tells ComfyUI of memory, against traced allocations of the published configurations; and the tracer."""

from __future__ import annotations

import sys

import pytest
import tiny
import torch
from sana_nodes.networks.precision import native_bf16

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))  # last: it has a graphs.py as support has

import memory as benchmark
from tracing import allocated_peak, traced_peak

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture
def shorter(monkeypatch):
    """The published configurations with two blocks, since one is done before the next; four sizes."""
    for name, (kind, config) in list(benchmark.CONFIGS.items()):
        if name not in benchmark.VAES:
            monkeypatch.setitem(benchmark.CONFIGS, name, (kind, {**config, "num_layers": 2}))
    monkeypatch.setattr(benchmark, "IMAGES", ((512, 512), (1024, 1024), (2048, 1024), (2048, 2048)))
    monkeypatch.setattr(benchmark, "VIDEOS", ((256, 256, 1), (480, 832, 9), (480, 832, 17), (704, 1280, 25)))
    monkeypatch.setattr(benchmark, "STEPS", ((2, 300), (1, 77)))
    benchmark.module.cache_clear()
    yield
    benchmark.module.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(benchmark.CONFIGS))
def test_estimates_are_within_30_percent_of_the_peak(shorter, name, dtype):
    """Encode and decode at four sizes, also in tiles; a step at four with one prompt and with two."""
    seen = {}
    for case in benchmark.cases(name, "meta", dtype):
        ratio = case.estimate / traced_peak(case.run)
        assert 0.7 < ratio < 1.3, f"{case.model} {case.what} {case.size}: estimated {ratio:.2f} of the peak"
        seen.setdefault(case.what, set()).add(case.size)
    assert all(len(sizes) >= (2 if "tiles" in what else 4) for what, sizes in seen.items())
    assert {"encode", "decode"} <= set(seen) or "step" in seen


@pytest.mark.parametrize("name", [name for name in benchmark.CONFIGS if "SANA-Video" in name])
def test_the_steps_of_a_short_and_of_a_long_video_are_within_10_percent(shorter, monkeypatch, name):
    """The prompt's norm decides the one, attention the other; in both the feed-forward is near."""
    monkeypatch.setattr(benchmark, "VIDEOS", ((256, 256, 1), (480, 832, 81)))
    for case in benchmark.cases(name, "meta", torch.bfloat16):
        ratio = case.estimate / traced_peak(case.run)
        assert 0.9 < ratio < 1.1, f"{case.what} {case.size}: estimated {ratio:.2f} of the peak"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tracer_agrees_with_the_cpu_allocator(dtype):
    """Within 10 %; what is missing is convolutions' own scratch in bfloat16."""
    if dtype == torch.bfloat16 and not native_bf16(torch.device("cpu")):
        pytest.skip("this processor has no bfloat16 kernels: no host computes in it, and its scratch is float32")
    for case, traced, allocated in benchmark.check(dtype):
        assert 0.9 < traced / allocated <= 1.0, f"{case.model} {case.what}: {traced:,} traced, {allocated:,} allocated"


def test_the_tracer_counts_storages_once_and_forgets_the_dead():
    """Views and in-place operations take nothing; a map that is gone before the next begins is not added to it."""
    given = torch.zeros(1000, device="meta")
    assert traced_peak(lambda: given.view(10, 100).t().add_(1)) == 0
    assert traced_peak(lambda: (given + 1).mul_(2)[:500]) == 4000
    assert traced_peak(lambda: given + 1 + 1 + 1) == 8000
    real = torch.zeros(1000)
    assert 8000 <= allocated_peak(lambda: real + 1 + 1 + 1) < 8100


def test_fused_attention_counts_as_its_output():
    query = torch.zeros(1, 2, 64, 16, device="meta")
    attention = torch.nn.functional.scaled_dot_product_attention
    assert traced_peak(lambda: attention(query, query, query)) == query.numel() * 4


def test_estimates_follow_the_config():
    """A model twice as wide takes twice as much; nothing is read off a published name."""
    from sana_nodes.networks.memory import transformer_memory

    small, wide = tiny.transformer(), tiny.transformer(num_attention_heads=4)
    ones = [transformer_memory(m, (1, 1, 1)).step((1, 32, 64, 64), 4, captions=1) for m in (small, wide)]
    assert 1.8 < ones[1] / ones[0] < 2.0
    assert transformer_memory(small, (1, 1, 1)).step((3, 32, 64, 64), 4, captions=1) == 3 * ones[0]
