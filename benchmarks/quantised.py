"""What quantised transformers lose on the demo weights, and the sizes of the published models in each format.

    python benchmarks/quantised.py [--prompts N]

Each demo transformer is written in each format and loaded by the embedded host, which dequantises it: so what is
measured is the error of the weights, without that of products whose input is quantised too. Printed for each format:
the error of its layers (root mean square over that of the weight: mean, and largest), and the difference of the decoded
images or frames to those of the bfloat16 weights (root mean square, of a range of 1, over prompts). Sizes are computed
from the shapes of diffusers' classes with weights that take no memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from sana_nodes import NODE_CLASS_MAPPINGS, host
from sana_nodes.model_loaders.files.build import build_empty
from sana_nodes.model_loaders.quantised.packing import PACKINGS
from sana_nodes.model_loaders.quantised.writer import StoredWeight, quantised_bytes
from sana_nodes.model_loaders.transformer import write_quantised_transformer

FOLDER = Path(__file__).resolve().parent.parent / "demo" / "models" / "diffusers"

SPRINT_1600M = {
    "num_attention_heads": 70,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "guidance_embeds": True,
    "qk_norm": "rms_norm_across_heads",
}
VIDEO_2B = {"mlp_ratio": 3.0, "qk_norm": "rms_norm_across_heads"}
IMAGES = (
    "a red ring on the left of a blue background",
    "a green square in the top right of an orange background",
    "a small yellow circle on a purple background",
    "a large blue triangle in the centre of a white background",
)
VIDEOS = ("a red ring moving right on a blue background", "a green square moving down on an orange background")


def published() -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of the weights of published transformers."""
    import diffusers

    made = {
        "SANA-Sprint 1.6B": build_empty(lambda: diffusers.SanaTransformer2DModel(**SPRINT_1600M)),
        "SANA-Video 2B": build_empty(lambda: diffusers.SanaVideoTransformer3DModel(**VIDEO_2B)),
    }
    return {name: {key: tuple(v.shape) for key, v in module.state_dict().items()} for name, module in made.items()}


def sizes() -> list[str]:
    """A row for each published model: its bytes in bfloat16, and in each format with their share of that."""
    lines = [f"| model | bf16 | {' | '.join(PACKINGS)} |", f"|---|---|{'---|' * len(PACKINGS)}"]
    for name, shapes in published().items():
        whole = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
        found = [quantised_bytes(shapes, wanted) for wanted in PACKINGS]
        cells = [f"{size / 1e9:.2f} GB ({size / whole:.3f})" for size in found]
        lines.append(f"| {name} | {whole / 1e9:.2f} GB | {' | '.join(cells)} |")
    return lines


def run(name: str, **given) -> tuple:
    """One node with the defaults of its widgets for what is not given; returns its outputs."""
    node = NODE_CLASS_MAPPINGS[name]
    required = node.INPUT_TYPES()["required"]
    defaults = {key: kind[1]["default"] for key, kind in required.items() if len(kind) > 1 and "default" in kind[1]}
    return getattr(node(), node.FUNCTION)(**{**defaults, **given})


def image(model, clip, vae, prompt: str) -> torch.Tensor:
    positive = run("SanaEncodePrompt", clip=clip, text=prompt)[0]
    latent = run("SanaEmptyLatent", width=256, height=256)[0]
    sampled = run("SanaSCMSample", model=model, positive=positive, latent_image=latent, seed=1)[0]
    return vae.decode(sampled["samples"])


def video(model, clip, vae, prompt: str) -> torch.Tensor:
    positive, negative = run("SanaEncodeVideoPrompt", clip=clip, prompt=prompt, negative_prompt="")
    latent = run("SanaEmptyVideoLatent", vae=vae, width=128, height=128, frames=17)[0]
    given = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    sampled = run("SanaFlowSample", **given, steps=10, cfg=1.0)[0]
    return vae.decode(sampled["samples"])


DEMOS = {"sana-sprint-demo": (image, IMAGES), "sana-video-demo": (video, VIDEOS)}


def demo_row(demo: str, wanted: str, work: Path, count: int) -> str:
    """The row of one demo model in one format."""
    generate, prompts = DEMOS[demo]
    weights: list[StoredWeight] = []
    file = work / "diffusion_models" / f"{demo}-{wanted}.safetensors"
    write_quantised_transformer(FOLDER / demo / "transformer", file, wanted, weights.append)
    whole, clip, vae = run("SanaLoadPipeline", pipeline=demo)
    small = run("SanaLoadTransformer", model_name=file.name)[0]
    errors = [weight.error for weight in weights if weight.format]
    before, after = (torch.cat([generate(model, clip, vae, p) for p in prompts[:count]]) for model in (whole, small))
    difference = (before - after).square().mean().sqrt().item()
    mean, worst = sum(errors) / len(errors), max(errors)
    return f"| {demo} | {wanted} | {mean:.2%} | {worst:.2%} | {difference:.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help="how many prompts are averaged")
    count = parser.parse_args().prompts
    print("\n".join(sizes()))
    print("\n| demo | format | error of layers | largest | images, root mean square |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "diffusion_models").mkdir()
        folders = host.use("embedded").folders
        folders.models, folders.user = [work, FOLDER.parent], work
        for demo in DEMOS:
            for wanted in PACKINGS:
                print(demo_row(demo, wanted, work, count), flush=True)


if __name__ == "__main__":
    main()
