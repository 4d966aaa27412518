"""Everything that needs a graphics card, in one command, and a report of it.

    python benchmarks/gpu.py [ROW ...] [--output FOLDER] [--repeats 10] [--layers N] [--small] [--tests]

For each row of benchmarks/run.py: the median time, the peak of memory beyond the weights, the share of the roofline and
the largest difference from float32, of diffusers as it is and compiled, and of the pack as it is, with compiled blocks
and with CUDA graphs. Then every equality with diffusers in float32 on this device, on small models, in each mode.
``--tests`` runs the suite's equalities too. It writes report.md and report.json; a cell that fails says why, and the
others are filled. The exit code is 1 where an equality does not hold.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from memory import CONFIGS, VAES
from rows import DEVICE, ROWS, Case, Size, published
from run import machine_of, operations, rates, timed
from sana_nodes.model_loaders.transformer import spec_of
from sana_nodes.networks import accelerated, card_layers, streaming
from sana_nodes.networks.autoencoder import Autoencoder, use_fast_autoencoder
from sana_nodes.networks.families import SPRINT, VIDEO
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.networks.transformer import network_inputs
from tracing import allocated_peak, cuda_peak

ROOT = Path(__file__).resolve().parents[1]
MODES = ("off", "blocks", "graphs")
BOUND = 1e-4
"""Largest difference from diffusers in float32, over the largest value where that is above 1."""


def with_mode(mode: str, make: Callable[[], Case]) -> Case:
    """A row whose models are loaded in a mode of Sana Compile."""
    with mock.patch.dict(os.environ, {accelerated.SETTING: mode}):
        return make()


def sides(name: str, size: Size) -> Iterator[tuple[str, Callable[[], tuple[Case, Callable]]]]:
    """Each way to compute a row: what makes its case, and the call of it."""
    make = partial(ROWS[name], size)

    def theirs(compiled: bool) -> tuple[Case, Callable]:
        case = with_mode("off", make)
        for module in case.modules if compiled else ():
            module.compile(backend=accelerated.BACKEND)
        return case, case.theirs

    yield "diffusers", partial(theirs, False)
    yield "diffusers, compiled", partial(theirs, True)
    for mode in MODES:
        yield f"pack, {mode}", lambda mode=mode: ((case := with_mode(mode, make)), case.ours)


def cell(make: Callable[[], tuple[Case, Callable]], repeats: int, floor: Callable[[Case], float]) -> dict:
    """One way's figures; ``floor``: seconds that a case takes at the least."""
    case, call = make()
    error = (call(0) - case.exact(0)).abs().max().item()  # the first call compiles or records
    call(0)
    seconds = statistics.median(timed(partial(call, 0))[0] for _ in range(repeats))
    peak = (cuda_peak if DEVICE.type == "cuda" else allocated_peak)(partial(call, 0))
    return {"seconds": seconds, "peak": peak, "error": error, "roofline": floor(case) / seconds}


def floor_of(case: Case, machine: tuple[float, float]) -> float:
    """Seconds of the products at this machine's rate, or of reading the weights once: the longer."""
    return max(operations(partial(case.theirs, 0)) / machine[0], case.weights / machine[1])


def filled_in(make: Callable[[], dict]) -> dict:
    """What ``make`` gives, or why there is nothing."""
    try:
        return make()
    except Exception as error:  # a report of what works on a card is wanted even where something does not
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"}
    finally:
        torch._dynamo.reset()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def table(names: list[str], size: Size, repeats: int, machine: tuple[float, float]) -> list[dict]:
    made = []
    for name in names:
        row: dict = {"row": name}
        floors: list[float] = []

        def floor(case: Case, floors=floors) -> float:
            """Of the first way, which nothing compiles; the others are the same work."""
            return (floors or floors.append(floor_of(case, machine)) or floors)[0]

        for side, make in sides(name, size):
            row[side] = filled_in(partial(cell, make, repeats, floor))
            print(f"{name:<22} {side:<20} {shown(row[side])}", flush=True)
        made.append(row)
    return made


def shown(figures: dict) -> str:
    if "failed" in figures:
        return figures["failed"]
    return "{:.2f} ms, {:.0f} MB, {:.0%} of the roofline, {:.1e} off".format(
        figures["seconds"] * 1e3, figures["peak"] / 2**20, figures["roofline"], figures["error"]
    )


def small(name: str) -> torch.nn.Module:
    return published(name, Size(small=True)).float()


def transformer_pair(name: str, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' output and the pack's of a small transformer, of a second step."""
    theirs = small(name)
    mine = use_fast_transformer(copy.deepcopy(theirs))
    card_layers.join_projections(mine)
    video = name.startswith("SANA-Video")
    spec = spec_of(theirs.config, VIDEO if video else SPRINT)
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    x, context = noise(2, spec.latent_channels, *((2,) if video else ()), 6, 10), noise(2, 9, spec.caption_channels)
    time, mask = torch.tensor([0.4, 0.7], device=DEVICE), torch.ones(2, 9, device=DEVICE)
    mask[0, 4:] = 0
    given = {"x": x, "time": time, "context": context, "guidance": torch.ones(1, device=DEVICE), "context_mask": mask}
    wanted = theirs(**network_inputs(spec, **given))[0]
    chosen, kept = accelerated.accelerated(mine, mode, DEVICE, name), {}
    for _ in range(2):
        made = accelerated.called(chosen, mine, network_inputs(spec, **given, kept=kept))[0]
    return wanted, made


def decoder_pair(name: str, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    theirs, spec = small(name), VAES[name]
    mine = use_fast_autoencoder(copy.deepcopy(theirs))
    card_layers.join_projections(mine)
    cells = (3, 4, 4) if spec.is_video else (3, 5)
    latent = torch.randn(1, spec.latent_channels, *cells, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    wanted = theirs.decode(latent, return_dict=False)[0]
    if spec.is_video:
        pieces = list(streaming.decode_pieces(mine, spec, latent, DEVICE, torch.float32))
        return wanted, torch.cat(pieces, dim=2)
    with Autoencoder(mine, spec).compiled(mode, DEVICE)._blocks("decode"):
        return wanted, mine.decode(latent, return_dict=False)[0]


@torch.no_grad()
def equality(name: str, mode: str) -> dict:
    wanted, made = (decoder_pair if name in VAES else transformer_pair)(name, mode)
    difference = (made - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
    return {"difference": difference, "holds": difference < BOUND}


def equalities() -> list[dict]:
    found = []
    for name in CONFIGS:
        for mode in MODES:
            found.append({"model": name, "mode": mode, **filled_in(partial(equality, name, mode))})
            print(f"{name:<22} {mode:<8} {found[-1].get('difference', found[-1].get('failed'))}", flush=True)
    return found


def tests() -> dict:
    command = [sys.executable, "-m", "pytest", "-q", "tests/exact", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"holds": run.returncode == 0, "end": run.stdout.strip().splitlines()[-1:]}


def no_farther(rows: list[dict]) -> list[dict]:
    """Whether the pack is about as near to float32 as diffusers is, row by row and mode by mode."""
    found = []
    for row in rows:
        theirs = row["diffusers"].get("error")
        for mode in MODES:
            mine = row[f"pack, {mode}"].get("error")
            if theirs is not None and mine is not None:
                found.append({"row": row["row"], "mode": mode, "times": mine / theirs if theirs else float(mine > 0)})
    return found


COLUMNS = (
    ("Milliseconds", "seconds", lambda value: f"{value * 1e3:.2f}"),
    ("Peak beyond the weights, MB", "peak", lambda value: f"{value / 2**20:.0f}"),
    ("Share of the roofline", "roofline", "{:.0%}".format),
    ("Largest difference from float32", "error", "{:.1e}".format),
)


def markdown(title: str, heads: list[str], rows: list[list]) -> list[str]:
    """A heading and a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["", f"## {title}", "", *(f"| {' | '.join(map(str, line))} |" for line in lines)]


def report(figures: dict) -> str:
    """The figures as tables of Markdown."""
    rows, equal, half = figures["rows"], figures["equalities"], figures["bfloat16"]
    names = [key for key in (rows[0] if rows else {}) if key != "row"]
    lines = ["# On a card", "", *(f"- {key}: {value}" for key, value in figures["machine"].items())]
    for title, key, form in COLUMNS:
        cells = [[row["row"], *(form(row[n][key]) if key in row[n] else "failed" for n in names)] for row in rows]
        lines += markdown(title, ["row", *names], cells)
    failed = [[row["row"], name, row[name]["failed"]] for row in rows for name in names if "failed" in row[name]]
    lines += markdown("What failed", ["row", "way", "why"], failed) if failed else []
    heads = ["model", "mode", "difference", "holds"]
    cells = [[one["model"], one["mode"], _difference(one), "yes" if one.get("holds") else "NO"] for one in equal]
    lines += markdown(f"Equal to diffusers in float32, within {BOUND}", heads, cells)
    cells = [[one["row"], one["mode"], f"{one['times']:.2f}"] for one in half]
    lines += markdown("Error in bfloat16 over diffusers' own", ["row", "mode", "times"], cells)
    tested = figures.get("tests")
    return "\n".join([*lines, *(["", f"The suite's equalities: {' '.join(tested['end'])}"] if tested else []), ""])


def _difference(one: dict) -> str:
    return one.get("failed") or f"{one['difference']:.1e}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="ROW", help=f"rows: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--output", type=Path, default=Path("gpu-report"), help="the folder of the report")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--layers", type=int, help="transformers and Gemma-2 of so many layers")
    parser.add_argument("--small", action="store_true", help="tiny models: does the benchmark itself run")
    parser.add_argument("--tests", action="store_true", help="run tests/exact too")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    machine = rates()
    figures: dict = {"machine": machine_of(*machine)}
    with torch.no_grad():
        size = Size(given.small, given.layers)
        figures["rows"] = table(given.names or list(ROWS), size, given.repeats, machine)
    figures["bfloat16"] = no_farther(figures["rows"])
    figures["equalities"] = equalities()
    if given.tests:
        figures["tests"] = tests()
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "report.json").write_text(json.dumps(figures, indent=1))
    (given.output / "report.md").write_text(report(figures))
    equal = all(one.get("holds") for one in figures["equalities"]) and figures.get("tests", {"holds": True})["holds"]
    print(f"{given.output / 'report.md'}: equalities {'hold' if equal else 'DO NOT HOLD'}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
