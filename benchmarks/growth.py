"""Time and memory of a step against the number of tokens: linear attention promises a line.

    python benchmarks/growth.py [--repeats 3] [--json FILE]

SANA-Sprint 0.6B with two of its layers from 256 to 4096 pixels square, and SANA-Video 2B (480p) with one layer and
frames of 256 x 256 pixels from 1 to 161 of them. Random weights, the dtype that this machine computes in. A line is
fitted by least squares; the residual is the largest distance from it over the largest value.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from memory import CONFIGS
from rows import DEVICE, filled
from run import timed
from sana_nodes.host.embedded import runtime
from sana_nodes.model_loaders.transformer import LoadedTransformer, spec_of
from sana_nodes.networks.families import SPRINT, VIDEO, Family
from sana_nodes.samplers import SAMPLERS
from tracing import allocated_peak, cuda_peak

SIDES = (256, 512, 1024, 1536, 2048, 3072, 4096)
FRAMES = (1, 9, 17, 41, 81, 121, 161)
SERIES = {
    "Sprint 0.6B": (SPRINT, 2, tuple((side // 32, side // 32) for side in SIDES)),
    "SANA-Video 480p": (VIDEO, 1, tuple(((frames - 1) // 4 + 1, 32, 32) for frames in FRAMES)),
}
"""A model to its family, the number of layers, and latents."""


def line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Slope and intercept of the least squares' line, and the largest residual over the largest value."""
    a = torch.tensor([[value, 1.0] for value in x], dtype=torch.float64)
    b = torch.tensor(y, dtype=torch.float64)
    slope, intercept = torch.linalg.lstsq(a, b[:, None]).solution.flatten().tolist()
    return slope, intercept, ((a @ torch.tensor([slope, intercept]).double() - b).abs().max() / b.max()).item()


def built(name: str, family: Family, layers: int) -> runtime.Model:
    import diffusers

    kind, config = CONFIGS[name]
    module = filled(lambda: getattr(diffusers, kind)(**{**config, "num_layers": layers}))
    return runtime.build_model(LoadedTransformer(module, spec_of(module.config, family), Path()), "default")


@torch.no_grad()
def measure(model: runtime.Model, cells: tuple[int, ...], repeats: int) -> tuple[int, float, int]:
    """Tokens, seconds of a step, and bytes at its peak."""
    spec = model.spec
    noise = torch.randn(1, spec.latent_channels, *cells)
    conditioning = [[torch.randn(1, 30, spec.caption_channels), {"pooled_output": None}]]
    sampler = SAMPLERS[spec.family.samplers[-1]].function
    sigmas = torch.tensor([model.sampling.sigma_max, 0.0])

    def step():
        latent = {"samples": torch.zeros_like(noise)}
        return runtime.sample(model, runtime.Guidance(conditioning), latent, noise, sigmas, sampler, 0, {})

    step()
    seconds = statistics.median(timed(step)[0] for _ in range(repeats))
    peak = (cuda_peak if DEVICE.type == "cuda" else allocated_peak)(step)
    tokens = noise[0, 0].numel() // (spec.patch[0] * spec.patch[1] * spec.patch[2])
    return tokens, seconds, peak


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args(arguments)
    results = {}
    for name, (family, layers, latents) in SERIES.items():
        model, points = built(name, family, layers), []
        for cells in latents:
            points.append(measure(model, cells, given.repeats))
            tokens, seconds, peak = points[-1]
            print(f"{name}: {tokens:>6} tokens  {seconds:>8.3f} s  {peak / 2**20:>8.0f} MiB", flush=True)
        results[name] = points
        counts, *measured = (list(values) for values in zip(*points))
        for what, values, unit, factor in zip(("time", "memory"), measured, ("µs", "KiB"), (1e6, 2**-10)):
            slope, intercept, residual = line(counts, values)
            results[f"{name} {what}"] = {"slope": slope, "intercept": intercept, "residual": residual}
            print(f"{name}: {what} is a line of {slope * factor:.1f} {unit} a token, residual {residual:.1%}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
