"""How far ComfyUI's EasyCache and LazyCache move the demo's videos, and how many of the network's calls they leave out.

    COMFYUI_PATH=DIR python benchmarks/step_reuse.py [--threshold 0.1] [--steps 50] [--videos 3]

NVIDIA's published setting for SANA-Video is a threshold of 0.10 with the first 3 of 50 steps computed. Distances are
the mean and the largest difference of a pixel from the video without a cache, of a range of 1, and whether the video
still shows the prompt's shape where it shall be in every frame.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import filming
import watching
from in_process import start_comfyui
from sana_nodes import NODE_CLASS_MAPPINGS, host

FIRST = 0.05
"""The share of the schedule in which every step is computed: with 50 steps the first 3."""


def cached(name: str, model, threshold: float):
    """A MODEL with one of ComfyUI's caches."""
    from comfy_extras import nodes_easycache

    node = getattr(nodes_easycache, f"{name}Node")
    return node.execute(model, threshold, FIRST, 0.95, False).args[0]


@torch.no_grad()
def compare(name: str, parts, threshold: float, steps: int, count: int) -> tuple[float, float, float, int]:
    """The share of calls, the mean and the largest difference, and how many videos show their prompt."""
    calls, mean, largest, right = [0, 0], 0.0, 0.0, 0
    network = parts[0].model.diffusion_model.transformer_blocks[0]  # EasyCache answers within the forward
    for seed, move in enumerate(watching.moves()[:count]):
        videos = []
        for side, model in enumerate((parts[0], cached(name, parts[0], threshold))):
            hook = network.register_forward_pre_hook(lambda *_, side=side: calls.__setitem__(side, calls[side] + 1))
            given = {**watching.SIZES, "cfg": watching.SAMPLING["cfg"], "steps": steps, "seed": seed}
            videos.append(filming.ours((model, *parts[1:]), prompt=move.prompt, negative="", **given))
            hook.remove()
        difference = (videos[1] - videos[0]).abs()
        mean, largest = mean + difference.mean().item() / count, max(largest, difference.max().item())
        right += not watching.wrong(move, videos[1])[0]
    return calls[1] / calls[0], mean, largest, right


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threshold", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--videos", type=int, default=3)
    given = parser.parse_args(arguments)
    sys.argv = sys.argv[:1]  # ComfyUI reads them too
    with tempfile.TemporaryDirectory() as home:
        for name in ("models", "input", "output", "custom_nodes", "user", "temp"):
            (Path(home) / name).mkdir()
        start_comfyui(Path(home))
        host.use("comfyui")
        parts = NODE_CLASS_MAPPINGS["SanaLoadPipeline"]().load("sana-video-demo", "default")
        for name in ("EasyCache", "LazyCache"):
            share, mean, largest, right = compare(name, parts, given.threshold, given.steps, given.videos)
            print(
                f"{name}, threshold {given.threshold}, {given.steps} steps: {share:.0%} of the calls, mean difference "
                f"{mean:.4f}, largest {largest:.3f}; {right} of {given.videos} videos show their prompt",
                flush=True,
            )


if __name__ == "__main__":
    main()
