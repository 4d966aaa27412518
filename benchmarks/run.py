"""The pack's speed and memory against diffusers on the same machine, with the same weights, to the same answer.

    python benchmarks/run.py [NAME ...] [--json FILE] [--repeats 5] [--layers N] [--small]

The pack's embedded host and diffusers take turns in one process, both in what they compute in by themselves with
bfloat16 weights. Ratios are the pack's figure over diffusers'. ``cpu`` is the ratio of processor time, which other
programs on the machine change less. Memory is what PyTorch allocates beyond the weights at its peak. Errors are the
largest difference from float32 over the same weights, in the row's own unit. The roofline is what the operations of
a row take at this machine's measured rate of bfloat16 matrix products, or reading its weights once at its rate of
copies: the longer of the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rows import DEVICE, ROWS, Case, Size
from torch.utils.flop_counter import FlopCounterMode
from tracing import allocated_peak, cuda_peak

COLUMNS = (
    ("row", "{:<20}", "row"),
    ("time", "{:>6.3f}", "ratio"),
    ("cpu", "{:>6.3f}", "cpu_ratio"),
    ("ours s", "{:>8.3f}", "ours_s"),
    ("theirs s", "{:>8.3f}", "theirs_s"),
    ("memory", "{:>6.2f}", "memory_ratio"),
    ("ours MB", "{:>8.0f}", "ours_mb"),
    ("theirs MB", "{:>9.0f}", "theirs_mb"),
    ("TFLOP", "{:>7.3f}", "tflop"),
    ("their TFLOP", "{:>11.3f}", "theirs_tflop"),
    ("roofline", "{:>8.2f}", "roofline"),
    ("error", "{:>9.2e}", "ours_error"),
    ("their error", "{:>11.2e}", "theirs_error"),
)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    wait()
    clock, processor = time.perf_counter(), time.process_time()
    call()
    wait()
    return time.perf_counter() - clock, time.process_time() - processor


def rates() -> tuple[float, float]:
    """Operations a second of a bfloat16 matrix product and bytes a second of a copy; the best of five."""
    source = torch.ones(2**26, device=DEVICE)
    target = torch.empty_like(source)
    copies = min(timed(lambda: target.copy_(source))[0] for _ in range(5))
    side, seconds = 128, 0.0
    while side < 2048 and seconds < 0.02:  # without bfloat16 kernels a large product takes minutes
        side *= 2
        a = torch.ones(side, side, device=DEVICE, dtype=torch.bfloat16)
        seconds = min(timed(lambda a=a: a @ a)[0] for _ in range(5))
    return 2 * side**3 / seconds, 2 * source.numel() * 4 / copies


def operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@torch.no_grad()
def measure(name: str, case: Case, repeats: int, machine: tuple[float, float]) -> dict:
    """One row's figures: a dict of plain values."""
    ours, theirs = case.ours(0), case.theirs(0)
    exact = case.exact(0)
    seconds = [(timed(lambda n=n: case.ours(n)), timed(lambda n=n: case.theirs(n))) for n in range(1, repeats + 1)]
    (our_clock, our_cpu), (their_clock, their_cpu) = (
        [statistics.median(values) for values in zip(*(pair[side] for pair in seconds))] for side in (0, 1)
    )
    peak = cuda_peak if DEVICE.type == "cuda" else allocated_peak
    calls = iter(range(repeats + 1, repeats + 99))
    our_peak, their_peak = (peak(lambda one=one: one(next(calls))) for one in (case.ours, case.theirs))
    our_flops, their_flops = (operations(lambda one=one: one(next(calls))) for one in (case.ours, case.theirs))
    floor = max(our_flops / machine[0], case.weights / machine[1])
    return {
        "row": name,
        "ratio": our_clock / their_clock,
        "cpu_ratio": our_cpu / their_cpu,
        "ours_s": our_clock,
        "theirs_s": their_clock,
        "memory_ratio": our_peak / their_peak,
        "ours_mb": our_peak / 2**20,
        "theirs_mb": their_peak / 2**20,
        "tflop": our_flops / 1e12,
        "theirs_tflop": their_flops / 1e12,
        "roofline": floor / our_clock,
        "ours_error": (ours - exact).abs().max().item(),
        "theirs_error": (theirs - exact).abs().max().item(),
    }


def line(values: dict | None = None) -> str:
    """A row of the table, or its heading."""
    if values is None:
        return "  ".join(f"{head:>{len(form.format(*_sample(form)))}}" for head, form, _ in COLUMNS)
    return "  ".join(form.format(values[key]) for _, form, key in COLUMNS)


def _sample(form: str) -> tuple:
    return ("",) if "<" in form else (0.0,)


def machine_of(products: float, copies: float) -> dict:
    kind = torch.cuda.get_device_name() if DEVICE.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": kind,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gflop_s": products / 1e9,
        "gb_s": copies / 1e9,
    }


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny models: does the benchmark itself run")
    parser.add_argument(
        "--layers", type=int, help="transformers and Gemma-2 with so many layers of the published width"
    )
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    machine = rates()
    print(json.dumps(machine_of(*machine)))
    print(line(), flush=True)
    results = []
    for name in given.names or ROWS:
        results.append(measure(name, ROWS[name](Size(given.small, given.layers)), given.repeats, machine))
        print(line(results[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine_of(*machine), "rows": results}, indent=1))
    return results


if __name__ == "__main__":
    main()
