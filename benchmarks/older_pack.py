"""A SANA-Sprint step of this pack against the older Sana pack's, in one process, on the same weights in bfloat16.

    COMFYUI_PATH=DIR python benchmarks/older_pack.py DIR [--model "Sprint 0.6B"] [--side 1024] [--repeats 5]

DIR is a checkout of the public repository lawrence-cj/ComfyUI_ExtraModels, which needs timm. The older pack's step is
its transformer and the arithmetic of its sampler on a prompt of 300 tokens, 270 of them padding, as it takes no other
length; this pack's is the embedded host's, which leaves padding out. With --tokens 300 nothing is padding.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
from pathlib import Path
from types import ModuleType

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import layouts
from rows import CAPTIONS, Size, Step, published, shared
from run import timed
from sana_nodes.host.embedded import runtime
from sana_nodes.model_loaders.transformer import LoadedTransformer, spec_of
from sana_nodes.networks.families import SPRINT
from sana_nodes.samplers import SAMPLERS
from tracing import allocated_peak

SETTINGS = {
    "Sprint 0.6B": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
    "Sprint 1.6B": {"depth": 20, "hidden_size": 2240, "num_heads": 20},
}
UNUSED = ("pos_embed", "logvar_linear.", "y_embedder.y_embedding")
"""What NVlabs' files have beside the weights that a step reads."""


def older_module(folder: Path, comfyui: Path, name: str, weights: dict) -> torch.nn.Module:
    """The older pack's transformer over our weights; ValueError where a weight has no place in it."""
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # reads the arguments

    sys.argv = arguments
    package = ModuleType("older_sana")  # its own __init__ would load its nodes
    package.__path__ = [str(folder / "Sana")]
    sys.modules["older_sana"] = package
    config = importlib.import_module("older_sana.conf").sana_conf
    wanted = SETTINGS[name]
    found = [
        entry["unet_config"]
        for entry in config.values()
        if entry["target"] == "SanaMSCM" and {key: entry["unet_config"][key] for key in wanted} == wanted
    ]
    made = importlib.import_module("older_sana.models.sana_multi_scale").SanaMSCM(**found[0])
    renamed = {key: value for key, value in layouts.nvlabs(weights).items() if not key.startswith(UNUSED)}
    missing, unknown = made.load_state_dict(renamed, strict=False)
    left = {key for key in missing if not key.startswith(UNUSED)} | set(unknown)
    if left:
        raise ValueError(f"the older pack's model has other weights: {sorted(left)[:5]}")
    made.dtype = torch.bfloat16
    return made.to(torch.bfloat16).eval().requires_grad_(False)


@torch.no_grad()
def compare(folder: Path, comfyui: Path, name: str, side: int, tokens: int, repeats: int) -> dict:
    row = Step(name, SPRINT, (side // 32, side // 32), tokens=(tokens, 2))
    module = published(name, Size())
    older = older_module(folder, comfyui, name, module.state_dict())
    spec = spec_of(module.config, row.family)
    model = runtime.build_model(LoadedTransformer(shared(module), spec, Path()), "default")
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, spec.latent_channels, *row.cells, generator=generator)
    state = torch.randn(1, tokens, spec.caption_channels, generator=generator)
    context = torch.cat([state, state.new_zeros(1, CAPTIONS - tokens, spec.caption_channels)], dim=1).bfloat16()
    sigmas = torch.tensor([model.sampling.sigma_max, 0.0])
    guidance = runtime.Guidance([[state, {"pooled_output": None}]])

    def ours() -> torch.Tensor:
        latent = {"samples": torch.zeros_like(noise)}
        return runtime.sample(model, guidance, latent, noise, sigmas, SAMPLERS["scm"].function, 0, {})["samples"]

    def theirs() -> torch.Tensor:
        time = sigmas[:1]
        velocity = older(noise, time, context, transformer_options={"cfg_scale": SPRINT.guidance_scale})
        return runtime.denormalise(spec.space, torch.cos(time) * noise - torch.sin(time) * velocity)

    first, second = ours(), theirs()
    seconds = [(timed(ours)[0], timed(theirs)[0]) for _ in range(repeats)]
    our_s, their_s = (statistics.median(values) for values in zip(*seconds))
    our_peak, their_peak = allocated_peak(ours), allocated_peak(theirs)
    return {
        "time": our_s / their_s,
        "memory": our_peak / their_peak,
        "ours_s": our_s,
        "theirs_s": their_s,
        "difference": ((first - second).abs().max() / second.abs().max()).item(),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--model", choices=SETTINGS, default="Sprint 0.6B")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=30, help=f"of the prompt, at most {CAPTIONS}")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    comfyui = Path(os.environ["COMFYUI_PATH"])
    found = compare(given.folder, comfyui, given.model, given.side, given.tokens, given.repeats)
    print(f"{given.model}, {given.side} pixels square, {given.tokens} tokens, this pack over the older one:")
    print(
        "time {time:.2f} ({ours_s:.2f} s over {theirs_s:.2f} s), memory {memory:.2f}, "
        "largest difference {difference:.1%} of the largest value".format(**found)
    )


if __name__ == "__main__":
    main()
