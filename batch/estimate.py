"""What a worker needs of memory, by the estimates of its models: from headers and shapes, no tensor is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cli.calls import BadCall
from .worker import Job, embedded_folders

LIBRARIES = 1 << 30
"""Bytes of main memory that Python and its libraries take."""

SIDE, FRAMES = 1024, 1
"""Of what is made, where the workflow does not say."""


@dataclass(frozen=True)
class Needs:
    """Bytes of one worker. ``weights`` of all models, ``work``: the largest pass beside them.

    ``card``: what a card of this machine has, 0 where it is unknown.
    """

    weights: int = 0
    work: int = 0
    card: int = 0

    @property
    def device(self) -> int:
        """Of a card: all models and one pass."""
        return self.weights + self.work

    @property
    def on_card(self) -> int:
        """Of main memory, where the models run on a card."""
        return self.weights + LIBRARIES if self.weights else 0

    @property
    def without_card(self) -> int:
        """Of main memory, where the models run on the processor."""
        return self.weights + self.work + LIBRARIES if self.weights else 0


def needs_of(job: Job) -> Needs:
    """What a worker of a job needs, at the size that the workflow has; nothing where it loads no models."""
    import torch

    from ..nodes.describing import describe

    folders = embedded_folders(job, "estimate")
    folders.fetch(job.graph, {})
    loaders = list(_loaders(job.graph))
    rows = [row for cls, name, dtype in loaders for row in describe(cls, name, dtype).get("parts", ())]
    card = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    try:
        work = max((_work(cls, name, job) for cls, name, _ in loaders), default=0)
    except (OSError, ValueError) as error:
        raise BadCall(f"the models cannot be loaded: {error}") from error
    return Needs(sum(row["memory"] for row in rows), work, card)


def _loaders(graph: Mapping[str, dict]) -> Iterator[tuple[str, str, str]]:
    """Class, model and weight_dtype of each loader."""
    from ..model_loaders.files.folders import LOADERS

    for node in graph.values():
        name = node["inputs"].get(LOADERS.get(node["class_type"], ("",))[0])
        if isinstance(name, str):
            yield node["class_type"], name, node["inputs"].get("weight_dtype", "default")


def _work(cls: str, name: str, job: Job) -> int:
    """The largest pass of what a loader loads: a step of a batch, or the decoding of one row."""
    from ..nodes.rules import named_model

    path = named_model(cls, name)
    if cls == "SanaLoadPipeline":
        return max(_step(path / "transformer", job), _decoding(path / "vae", job))
    return {"SanaLoadTransformer": _step, "SanaLoadVAE": _decoding}.get(cls, lambda *_: 0)(path, job)


def _step(path: Path, job: Job) -> int:
    from ..model_loaders.transformer import load_transformer
    from ..networks.latent_spaces import DC_AE
    from ..networks.memory import transformer_memory

    loaded = load_transformer(path)
    spec, memory = loaded.spec, transformer_memory(loaded.module, loaded.spec.patch)
    height, width, frames, count = _size(job.graph)
    cells = [side // (spec.space or DC_AE).cell for side in (height, width)]
    deep = [1 + (frames - 1) // spec.frame_ratio] if spec.family.video else []
    return memory.step((job.batch * count, spec.latent_channels, *deep, *cells), 4)


def _decoding(path: Path, job: Job) -> int:
    from ..model_loaders.vae import load_vae
    from ..networks.memory import vae_memory

    loaded = load_vae(path)
    height, width, frames, _ = _size(job.graph)
    ratio = loaded.spec.spatial_ratio
    cells = (height // ratio, width // ratio)
    latent = (loaded.spec.latent_frames(frames), *cells) if loaded.spec.is_video else cells
    pixels = 12 * height * width * frames
    return vae_memory(loaded.module, loaded.spec).decode((1, loaded.spec.latent_channels, *latent), 4) + pixels


def _size(graph: Mapping[str, dict]) -> tuple[int, int, int, int]:
    """Height, width, frames and images of a row: the largest that a node of the workflow has."""
    sizes = [(SIDE, SIDE, FRAMES, 1)] if not any("width" in node["inputs"] for node in graph.values()) else []
    for node in graph.values():
        found = [node["inputs"].get(name, one) for name, one in _NAMES.items()]
        if "width" in node["inputs"] and all(isinstance(value, int) for value in found):
            sizes.append(tuple(found))
    return max(sizes or [(SIDE, SIDE, FRAMES, 1)], key=math.prod)


_NAMES = {"height": SIDE, "width": SIDE, "frames": FRAMES, "batch_size": 1}
