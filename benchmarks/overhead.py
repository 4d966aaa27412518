"""What nodes and host add to the three modules of an image: seconds outside of Gemma-2, the transformer and the DC-AE.

    python benchmarks/overhead.py [--host embedded|comfyui] [--side 1024] [--images 4] [--folder DIR] [--small]

A graph with several prompts (Sana Encode Prompt, Sana SCM Sample with two steps, VAE Decode, Save Image) runs once
over SANA-Sprint 0.6B with random weights of bfloat16. What is inside a module's call is subtracted from what its node
took; what the graph's executor takes between nodes is divided among the images. The first image, which loads, does not
count, and loading and saving are not part of it. COMFYUI_PATH names the ComfyUI.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

REPOSITORY = Path(__file__).parent.parent
MODULES = ("Gemma2Model", "SanaTransformer2DModel", "Decoder")
NODES = ("SanaEncodePrompt", "SanaSCMSample", "VAEDecode")
"""The nodes of each image, without those that load and save."""


class Watch:
    """Seconds of each call of a node, and of the modules within it."""

    def __init__(self):
        self.spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.inside, self.first, self.last = 0.0, None, 0.0
        self.hooked: set[int] = set()

    def around(self, name: str, method: Callable) -> Callable:
        """A node's method that notes what it takes."""

        def timed(node, *arguments, **inputs):
            self.inside, start = 0.0, time.perf_counter()
            self.first = start if self.first is None else self.first
            result = method(node, *arguments, **inputs)
            self.last = time.perf_counter()
            self.spent[name].append((self.last - start, self.inside))
            self.hook()
            return result

        return timed

    def hook(self) -> None:
        """Note the calls of the modules that were loaded meanwhile."""
        if len(self.hooked) == len(MODULES):
            return
        for module in [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]:
            kinds = {kind.__name__ for kind in type(module).__mro__}
            if kinds & set(MODULES) and id(module) not in self.hooked and not next(module.parameters()).is_meta:
                self.hooked.add(id(module))
                module.register_forward_pre_hook(lambda *_: self._enter())
                module.register_forward_hook(lambda *_: self._leave())

    def _enter(self) -> None:
        self.entered = time.perf_counter()

    def _leave(self) -> None:
        self.inside += time.perf_counter() - self.entered

    def added(self) -> tuple[float, float, float]:
        """Median seconds of an image inside the modules and in its nodes beside them; seconds between nodes."""
        chains = [list(zip(*calls[1:])) for name, calls in self.spent.items() if name in NODES]
        whole = [sum(values) for values in zip(*(chain[0] for chain in chains))]
        inside = [sum(values) for values in zip(*(chain[1] for chain in chains))]
        noted = sum(seconds for calls in self.spent.values() for seconds, _ in calls)
        between = (self.last - self.first - noted) / (len(whole) + 1)
        beside = statistics.median(a - b for a, b in zip(whole, inside))
        return statistics.median(inside), beside, max(0.0, between)


def write_pipeline(folder: Path, small: bool) -> None:
    """A pipeline's folder as diffusers writes it, with random weights."""
    import diffusers
    from rows import GEMMA, SMALL_GEMMA, Size, filled, published
    from transformers import Gemma2Config, Gemma2Model

    demo = REPOSITORY / "demo" / "models" / "diffusers" / "sana-sprint-demo"
    size = Size(small)
    config = Gemma2Config(**{**GEMMA, **(SMALL_GEMMA if small else {})})
    transformer = published("Sprint 0.6B", size)
    if not small:
        assert transformer.config.caption_channels == config.hidden_size
    filled(lambda: Gemma2Model(config)).save_pretrained(folder / "text_encoder")
    transformer.save_pretrained(folder / "transformer")
    published("DC-AE", size).save_pretrained(folder / "vae")
    diffusers.SCMScheduler().save_pretrained(folder / "scheduler")
    shutil.copytree(demo / "tokenizer", folder / "tokenizer")
    index = {
        "_class_name": "SanaSprintPipeline",
        "scheduler": ["diffusers", "SCMScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def graph(name: str, images: int, side: int) -> dict:
    """Several images of one pipeline, each with its prompt and seed."""
    latent = {"width": side, "height": side, "batch_size": 1}
    nodes = {
        "load": {"class_type": "SanaLoadPipeline", "inputs": {"pipeline": name, "weight_dtype": "default"}},
        "latent": {"class_type": "SanaEmptyLatent", "inputs": latent},
    }
    for n in range(images):
        prompt = f"image {n} of a small boat upon a wide and quiet sea before the evening, with clouds and birds"
        kinds: dict[str, tuple[str, dict]] = {
            "encode": ("SanaEncodePrompt", {"clip": ["load", 1], "text": prompt}),
            "sample": (
                "SanaSCMSample",
                {"model": ["load", 0], "positive": [f"encode{n}", 0], "latent_image": ["latent", 0], "seed": n},
            ),
            "decode": ("VAEDecode", {"samples": [f"sample{n}", 0], "vae": ["load", 2]}),
            "save": ("SaveImage", {"images": [f"decode{n}", 0], "filename_prefix": "overhead"}),
        }
        for kind, (class_type, inputs) in kinds.items():
            nodes[f"{kind}{n}"] = {"class_type": class_type, "inputs": {**DEFAULTS.get(class_type, {}), **inputs}}
    return nodes


DEFAULTS = {
    "SanaEncodePrompt": {
        "instruction": "image",
        "guidance_scale": 4.5,
        "max_sequence_length": 300,
        "clean_caption": False,
    },
    "SanaSCMSample": {
        "steps": 2,
        "max_timesteps": 1.5708,
        "intermediate_timesteps": 1.3,
        "denoise": 1.0,
        "add_noise": "enable",
    },
}


@contextmanager
def watched(classes: dict[str, type], used: set[str]) -> Iterator[Watch]:
    """Node classes whose methods note what they take, until the block ends."""
    watch, methods = Watch(), {name: (classes[name], classes[name].FUNCTION) for name in used}
    before = {name: getattr(*method) for name, method in methods.items()}
    for name, method in methods.items():
        setattr(*method, watch.around(name, before[name]))
    try:
        yield watch
    finally:
        for name, method in methods.items():
            setattr(*method, before[name])


def run_embedded(nodes: dict, base: Path) -> Watch:
    import sana_nodes
    from sana_nodes import host
    from sana_nodes.host.embedded import graph as executor

    folders = host.use("embedded").folders
    folders.models, folders.output = [base / "models"], base / "output"
    classes = executor.known_classes(sana_nodes.NODE_CLASS_MAPPINGS)
    with watched(classes, {node["class_type"] for node in nodes.values()}) as watch:
        executor.run(nodes, sana_nodes.NODE_CLASS_MAPPINGS, folders, None, None, True)
    return watch


def run_comfyui(nodes: dict, base: Path) -> Watch:
    from sana_nodes.host.comfyui import process

    arguments = ["--base-directory", str(base), *([] if torch.cuda.is_available() else ["--cpu"])]
    loop, server = process.start(Path(os.environ["COMFYUI_PATH"]), REPOSITORY, arguments)
    with watched(process.known_classes(), {node["class_type"] for node in nodes.values()}) as watch:
        process.run(loop, server, nodes, process.check(loop, nodes))
    return watch


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="embedded", choices=("embedded", "comfyui"))
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where the models are written (7 GB)")
    parser.add_argument("--small", action="store_true", help="tiny models: does the benchmark itself run")
    given = parser.parse_args(arguments)
    sys.argv = sys.argv[:1]  # ComfyUI reads them too
    with TemporaryDirectory(dir=given.folder) as folder:
        base = Path(folder)
        for name in ("models/diffusers", "input", "output", "custom_nodes", "user", "temp"):
            (base / name).mkdir(parents=True)
        write_pipeline(base / "models" / "diffusers" / "random", given.small)
        nodes = graph("random", given.images, given.side)
        inside, beside, between = {"embedded": run_embedded, "comfyui": run_comfyui}[given.host](nodes, base).added()
    share = (beside + between) / inside
    print(
        f"{given.host}: {inside:.3f} s of an image inside the modules, {beside * 1000:.0f} ms in its nodes beside "
        f"them, {between * 1000:.0f} ms between nodes: {share:.1%} added"
    )
    return {"inside_s": inside, "beside_s": beside, "between_s": between, "added": share}


if __name__ == "__main__":
    main()
