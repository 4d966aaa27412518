"""Launches, bytes moved and the host's own time of one call of each part: the pack beside diffusers.

    python benchmarks/launches.py [NAME ...] [--json FILE] [--host-time]

Launches and bytes are counted on meta tensors of the published sizes in bfloat16, as a card would run the call: one for
each operator that has a kernel, with the bytes of its inputs and outputs. Scaled dot-product attention counts as one
kernel, and so does ``rms_norm``, as in PyTorch 2.9 and later on CUDA (older ones launch about eight). ``first`` is the
first step of a run, ``later`` any other: what does not change between steps is kept.

``--host-time`` measures what the program around the kernels takes: narrow models of the published depth on the CPU, in
one thread, in the shapes of a card. With COMFYUI_PATH set, also as ComfyUI calls them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from memory import CONFIGS, VAES
from roofline import launches
from sana_nodes.model_loaders.transformer import spec_of
from sana_nodes.networks import card_layers, streaming
from sana_nodes.networks.autoencoder import use_fast_autoencoder
from sana_nodes.networks.families import SPRINT, VIDEO
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.networks.text_encoder import use_fast_text_encoder
from sana_nodes.networks.transformer import network_inputs, token_times

PADDED, WORDS = 300, 77
"""Tokens of a prompt in diffusers, with a mask, and in the pack, which leaves padding out."""

NARROW = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 48,
}

Call = Callable[[], object]


@dataclass(frozen=True)
class Step:
    """A row of a transformer's step: a model, the latent's cells, the batch (2 is guidance), and image to video."""

    model: str
    cells: tuple[int, ...]
    batch: int = 1
    from_image: bool = False

    def module(self, device: str, dtype: torch.dtype, narrow: bool = False, layers: int | None = None):
        import diffusers

        kind, config = CONFIGS[self.model]
        config = {**config, "num_layers": layers} if layers else config
        with torch.device(device):
            made = getattr(diffusers, kind)(**{**config, **(NARROW if narrow else {})})
        return made.eval().requires_grad_(False).to(dtype)

    def calls(self, module, ours: bool) -> list[Call]:
        """A run's first step and a later one; diffusers' are the same."""
        like = next(module.parameters())
        spec = spec_of(module.config, VIDEO if len(self.cells) == 3 else SPRINT)
        make = partial(torch.zeros, device=like.device, dtype=like.dtype)
        x = make(self.batch, spec.latent_channels, *self.cells)
        given = {
            "context": make(self.batch, WORDS if ours else PADDED, spec.caption_channels),
            "guidance": make(1),
        }
        if not ours:
            given["context_mask"] = make(self.batch, PADDED)
        time = torch.ones(1 if ours else self.batch, device=like.device)  # guidance has one for both prompts
        sides = (1, 1) if ours else self.cells[1:]  # the pack has a frame's time once
        mask = torch.ones(1, 1, self.cells[0], *sides, device=like.device) if self.from_image else None

        def run(**kept):
            inputs = network_inputs(spec, x, time, **given, **kept, mask=mask if ours else None)
            if self.from_image and not ours:
                inputs["timestep"] = token_times(spec, time, mask.expand(self.batch, *mask.shape[1:]))
            return module(**inputs)[0]

        if not ours:
            return [run]
        kept: dict = {}
        return [partial(run, kept=kept)] * 2


def step_calls(row: Step, side: str) -> list[Call]:
    module = row.module("meta", torch.bfloat16)
    if side == "pack":
        card_layers.join_projections(use_fast_transformer(module))
    return row.calls(module, side == "pack")


def vae_calls(name: str, cells: tuple[int, ...], side: str) -> list[Call]:
    import diffusers

    kind, config = CONFIGS[name]
    with torch.device("meta"):
        module = getattr(diffusers, kind)(**config).eval().requires_grad_(False).to(torch.bfloat16)
    latent = torch.empty(1, VAES[name].latent_channels, *cells, device="meta", dtype=torch.bfloat16)
    if side == "diffusers":
        return [partial(module.decode, latent, return_dict=False)]
    use_fast_autoencoder(module)
    if len(cells) == 2:
        return [partial(module.decode, latent, return_dict=False)]
    return [lambda: list(streaming.decode_pieces(module, VAES[name], latent, "meta", torch.bfloat16))]


def prompt_calls(side: str) -> list[Call]:
    """diffusers: instruction and prompt, padded; the pack: the prompt behind the kept instruction."""
    from rows import GEMMA
    from transformers import DynamicCache, Gemma2Config, Gemma2Model

    with torch.device("meta"):
        module = Gemma2Model(Gemma2Config(**GEMMA)).eval().requires_grad_(False).to(torch.bfloat16)

    def ids(count: int) -> torch.Tensor:
        return torch.zeros(1, count, dtype=torch.long, device="meta")

    if side == "diffusers":
        mask = torch.ones(1, 512, dtype=torch.long, device="meta")
        return [lambda: module(ids(512), attention_mask=mask, use_cache=False)]
    use_fast_text_encoder(module)
    kept = DynamicCache()
    with torch.no_grad():
        module(ids(214), past_key_values=kept, use_cache=True)

    def run():
        from sana_nodes.networks.prompt_cache import Prefix

        return module(ids(30), past_key_values=Prefix((), kept, ids(1)).cut(214), use_cache=True)

    return [run]


STEPS = {
    "sprint-0.6b-step": Step("Sprint 0.6B", (32, 32)),
    "sana-1.6b-step-cfg": Step("Sana 1.6B", (32, 32), 2),
    "video-2b-step-cfg": Step("SANA-Video 480p", (21, 60, 104), 2),
    "image-to-video-step-cfg": Step("SANA-Video 480p", (21, 60, 104), 2, from_image=True),
}
ROWS: dict[str, Callable[[str], list[Call]]] = {
    **{name: partial(step_calls, row) for name, row in STEPS.items()},
    "dc-ae-decode": partial(vae_calls, "DC-AE", (32, 32)),
    "wan-decode": partial(vae_calls, "Wan 2.1 VAE", (21, 60, 104)),
    "prompt": prompt_calls,
}


def counted(call: Call) -> tuple[int, float]:
    """Launches, and gigabytes of their inputs and outputs."""
    kernels = launches(call)
    return len(kernels), sum(kernel.moved for kernel in kernels) / 1e9


def count_row(name: str) -> dict:
    """A row's figures; ``later`` is that of the last call."""
    theirs = counted(ROWS[name]("diffusers")[0])
    calls = ROWS[name]("pack")
    first, *later = [counted(call) for call in calls]
    last = later[-1] if later else first
    return {
        "row": name,
        "diffusers_launches": theirs[0],
        "diffusers_gb": theirs[1],
        "first_launches": first[0],
        "first_gb": first[1],
        "later_launches": last[0],
        "later_gb": last[1],
        "launches_ratio": last[0] / theirs[0],
        "gb_ratio": last[1] / theirs[1],
    }


@contextmanager
def shapes_of_a_card():
    """The code that a card runs, on the CPU; one operator stands in for the card's kernel of ``rms_norm``."""

    def one_operator(x, shape, weight=None, eps=None):
        return torch.layer_norm(x, shape, weight, None, eps or 1e-6)

    with (
        mock.patch.object(card_layers, "CARDS", {"cpu"}),
        mock.patch.object(torch.nn.functional, "rms_norm", one_operator),
    ):
        yield


def timed_once(call: Call) -> float:
    """Processor seconds of a call, which other programs on the machine change little."""
    start = time.process_time()
    call()
    return time.process_time() - start


def comfy_module(module: torch.nn.Module) -> torch.nn.Module:
    """As ComfyUI calls it, with weights stored in what is computed in."""
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    from sana_nodes.host.comfyui.modules import use_comfy_ops

    return use_fast_transformer(use_comfy_ops(module, None, torch.float32))


def host_row(row: Step, repeats: int = 30, layers: int | None = None) -> dict[str, float]:
    """Milliseconds of a later step by side: the best, the sides in turn, of a model of the published depth."""
    row = Step(row.model, (*((2,) if len(row.cells) == 3 else ()), 4, 4), row.batch, row.from_image)
    sides = {"diffusers": lambda m: m, "pack": use_fast_transformer}
    if "COMFYUI_PATH" in os.environ:
        sys.path.insert(0, os.environ["COMFYUI_PATH"])
        sides["pack in ComfyUI"] = comfy_module
    torch.set_num_threads(1)
    calls = {}
    with torch.no_grad(), shapes_of_a_card():
        for side, make in sides.items():
            module = make(row.module("cpu", torch.float32, narrow=True, layers=layers))
            card_layers.join_projections(module)
            first, *later = row.calls(module, side != "diffusers")
            first()
            calls[side] = (later or [first])[-1]
        seconds = [{side: timed_once(call) for side, call in calls.items()} for _ in range(repeats)]
    return {side: 1e3 * min(one[side] for one in seconds) for side in calls}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--host-time", action="store_true", help="milliseconds of the program around the kernels")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    names = given.names or list(ROWS)
    print(f"{'row':<24}{'launches: diffusers, first, later':>36}{'GB: diffusers, first, later':>32}   ratios")
    figures: dict = {"counts": [], "host_ms": {}}
    for name in names:
        row = count_row(name)
        figures["counts"].append(row)
        made = "".join(f"{row[f'{side}_launches']:>12}" for side in ("diffusers", "first", "later"))
        moved = "".join(f"{row[f'{side}_gb']:>11.2f}" for side in ("diffusers", "first", "later"))
        print(f"{name:<24}{made}{moved}   {row['launches_ratio']:.2f} {row['gb_ratio']:.2f}", flush=True)
    for name in [name for name in names if name in STEPS] if given.host_time else ():
        figures["host_ms"][name] = host_row(STEPS[name])
        print(f"{name:<24}" + ", ".join(f"{side} {ms:.1f} ms" for side, ms in figures["host_ms"][name].items()))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
