"""What a graphics card could reach, on paper: operations, bytes and launches of each part at its full size.

    python benchmarks/roofline.py [--card NAME] [--json FILE]

Each part runs once on meta tensors in bfloat16, as the pack runs it on a card; nothing is computed. For every kernel
that PyTorch would launch, its floating-point operations and the bytes of its inputs and outputs are counted. From these
and a card's published rates of dense bfloat16 products and of memory follow three times:

- eager: every kernel takes the longer of its products, its bytes and EAGER_LAUNCH, what the host needs to launch it;
- compiled: what lies between products (norms, gates, casts, copies) is fused into them and moves no further bytes;
- graphed: the same without waiting for launches.

They are bounds for perfect kernels: a measured time is longer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from memory import cases
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from tracing import CONVOLUTIONS, FusedKernels, in_layout_of

CARDS = {"H100": (989e12, 3.35e12), "RTX 4090": (165e12, 1.01e12), "RTX 5090": (210e12, 1.79e12)}
"""Operations a second in dense bfloat16 products with float32 sums, and bytes a second of memory (NVIDIA's sheets)."""

EAGER_LAUNCH, GRAPHED_LAUNCH = 6e-6, 1e-6
"""Seconds between two kernels that the host launches one by one, and of a CUDA graph."""

PARTS = (
    ("Sprint 0.6B", "step", "1024 x 1024, batch 1, prompt 77"),
    ("Sprint 1.6B", "step", "1024 x 1024, batch 1, prompt 77"),
    ("Sana 1.6B", "step", "1024 x 1024, batch 2, prompt 300"),
    ("Sana 1.6B", "step", "4096 x 4096, batch 2, prompt 300"),
    ("SANA-Video 480p", "step", "832 x 480 x 81, batch 2, prompt 300"),
    ("SANA-Video 720p", "step", "1280 x 704 x 121, batch 2, prompt 300"),
    ("DC-AE", "decode", "1024 x 1024"),
    ("DC-AE", "encode", "1024 x 1024"),
    ("DC-AE", "decode in tiles", "4096 x 4096"),
    ("Wan 2.1 VAE", "decode", "832 x 480 x 81"),
    ("LTX-2 video VAE", "decode", "1280 x 704 x 121"),
)
"""Rows of benchmarks/memory.py: model, what, size. A batch of 2 is guidance."""


@dataclass(frozen=True)
class Kernel:
    """One launch: floating-point operations (0 where it is no product) and bytes read and written."""

    operations: int
    moved: int

    def seconds(self, card: tuple[float, float]) -> float:
        return max(self.operations / card[0], self.moved / card[1])


WITHOUT_KERNEL = {
    torch.ops.aten.empty,
    torch.ops.aten.new_empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
}


class CountedKernels(FusedKernels):
    """Attention, which does not keep its map in memory, and norms as one kernel each."""

    def __init__(self, kernels: list[Kernel]):
        super().__init__()
        self.kernels = kernels

    def attention(self, query, key, value, *args, **kwargs):
        out = super().attention(query, key, value, *args, **kwargs)
        operations = 2 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self.kernels.append(Kernel(operations, moved(query, key, value, out)))
        return out

    def rms_norm(self, x, shape, weight=None, eps=None):
        out = super().rms_norm(x)
        self.kernels.append(Kernel(0, moved(x, out, *([] if weight is None else [weight]))))
        return out


def moved(*tensors: torch.Tensor) -> int:
    """Bytes of tensors; what is expanded is read once."""
    return sum(_distinct(t) * t.itemsize for t in tensors)


def _distinct(x: torch.Tensor) -> int:
    return math.prod(size for size, stride in zip(x.shape, x.stride()) if stride)


class Launches(TorchDispatchMode):
    """The kernels that a call launches; views launch none."""

    def __init__(self):
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        result = in_layout_of(args[0], result) if func in CONVOLUTIONS else result
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        storages = {id(t.untyped_storage()) for t in given}
        is_view = not func._schema.is_mutable and made and all(id(t.untyped_storage()) in storages for t in made)
        if made and not is_view and func._overloadpacket not in WITHOUT_KERNEL:
            count = flop_registry.get(func._overloadpacket)
            operations = count(*args, **(kwargs or {}), out_val=result) if count else 0
            self.kernels.append(Kernel(int(operations), moved(*given, *made)))
        return result


def launches(call: Callable[[], object]) -> list[Kernel]:
    counted = Launches()
    with torch.no_grad(), CountedKernels(counted.kernels), counted:
        call()
    return counted.kernels


def bounds(kernels: list[Kernel], card: tuple[float, float]) -> dict[str, float]:
    """Seconds at the least."""
    products = [kernel.seconds(card) for kernel in kernels if kernel.operations]
    return {
        "eager": sum(max(kernel.seconds(card), EAGER_LAUNCH) for kernel in kernels),
        "compiled": sum(max(seconds, EAGER_LAUNCH) for seconds in products),
        "graphed": sum(max(seconds, GRAPHED_LAUNCH) for seconds in products),
    }


@dataclass(frozen=True)
class Row:
    part: str
    tflop: float
    gigabytes: float
    launches: int
    products: int
    milliseconds: dict[str, dict[str, float]]


def row(part: tuple[str, str, str], cards: dict[str, tuple[float, float]]) -> Row:
    model, what, size = part
    case = next(c for c in cases(model, "meta", torch.bfloat16) if (c.what, c.size) == (what, size))
    kernels = launches(case.run)
    times = {name: {k: v * 1e3 for k, v in bounds(kernels, card).items()} for name, card in cards.items()}
    return Row(
        f"{model} {what}, {size}",
        sum(kernel.operations for kernel in kernels) / 1e12,
        sum(kernel.moved for kernel in kernels) / 1e9,
        len(kernels),
        sum(kernel.operations > 0 for kernel in kernels),
        times,
    )


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", choices=CARDS, help="one card (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args(arguments)
    cards = {given.card: CARDS[given.card]} if given.card else CARDS
    heads = "  ".join(f"{name + ' eager/compiled/graphed ms':>36}" for name in cards)
    print(f"{'part':<58} {'TFLOP':>7} {'GB':>7} {'launches':>8} {'products':>8}  {heads}")
    rows = []
    for part in PARTS:
        rows.append(made := row(part, cards))
        times = "  ".join(f"{'/'.join(f'{v:.1f}' for v in made.milliseconds[name].values()):>36}" for name in cards)
        print(
            f"{made.part:<58} {made.tflop:>7.2f} {made.gigabytes:>7.1f} {made.launches:>8} {made.products:>8}  {times}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in rows], indent=1))
    return rows


if __name__ == "__main__":
    main()
