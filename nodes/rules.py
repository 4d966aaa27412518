"""What a graph tells of a node before it runs: formats and sound, models and VAEs, numbers of frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import host
from ..media.formats import VIDEO_FORMATS
from ..model_loaders.files import facts, folders
from ..model_loaders.files.checkpoint import UnusableFile
from ..networks.families import FAMILIES, IMAGE, LONG_VIDEO, SPRINT, VIDEO, Family
from ..networks.latent_spaces import LatentSpace
from .checks import GraphNode, Problem

MODEL_LOADERS = {"SanaLoadPipeline": "transformer", "SanaLoadTransformer": ""}
VAE_LOADERS = {"SanaLoadPipeline": "vae", "SanaLoadVAE": ""}
"""Loader to the part of its folder."""

SAMPLERS = {
    "SanaSCMSample": ("Sana SCM Sample", (SPRINT,)),
    "SanaFlowSample": ("Sana Flow Sample", (IMAGE, VIDEO)),
    "SanaLongVideoSample": ("Sana Long Video Sample", (LONG_VIDEO,)),
    "SanaLongVideoSave": ("Sana Long Video Save", (LONG_VIDEO,)),
}
"""Node to its name on the page and the families that it samples."""

SAMPLES = ("samples", "latent_image", "latent")
DECODERS = ("VAEDecode", "VAEDecodeTiled", "SanaDecodeSaveVideo")
IDLE = ("SanaSCMSample", "SanaFlowSample", "SanaLongVideoSample", "VAEDecode", "VAEDecodeTiled")
"""What does not run where nothing takes its result."""

IMAGES = ("images", "image", "samples", "latent_image")
"""Inputs along which frames and latents are followed to where their number is set."""


def sound_fits(node: GraphNode) -> Iterator[Problem]:
    """A format without sound, where sound is connected."""
    kind = VIDEO_FORMATS.get(str(node.inputs.get("format")))
    if kind is not None and kind.sound is None and node.source("audio"):
        with_sound = ", ".join(name for name, row in VIDEO_FORMATS.items() if row.sound)
        yield "format", f"{node.inputs['format']} has no sound: choose {with_sound}, or disconnect audio"


def sampler_fits(node: GraphNode) -> Iterator[Problem]:
    """A model that its sampler cannot sample; ``node`` is the model's loader."""
    family = _family(node)
    for sampler in (GraphNode(node.graph, key) for key in node.graph):
        title, families = SAMPLERS.get(sampler.kind, ("", ()))
        if family and families and family not in families and _loader_of(sampler) == node and _runs(sampler):
            named = " and ".join(each.name for each in families)
            text = f"this model is {family.name}, and {title} is for {named}: sample it with {family.node}"
            if families == (LONG_VIDEO,) and family is VIDEO:
                text += ". If its file is LongSANA's, choose long as variant in Sana Load Transformer"
            yield folders.LOADERS[node.kind][0], text


def _family(loader: GraphNode) -> Family | None:
    """The family of what a loader loads, from the headers of its files; None if it cannot be told."""
    path = loaded_path(loader, MODEL_LOADERS)
    try:
        kind = None if path is None else facts.facts_of(path).kind
    except (OSError, UnusableFile):
        return None
    family = FAMILIES.get(kind.key) if kind else None
    variant = loader.inputs.get("variant", "auto")
    if family in (VIDEO, LONG_VIDEO) and variant != "auto":
        return LONG_VIDEO if variant == "long" else VIDEO
    return family


def vae_fits(node: GraphNode) -> Iterator[Problem]:
    """A VAE that decodes latents of a model which has another VAE; ``node`` is the VAE's loader."""
    input_name = folders.LOADERS[node.kind][0]
    own = _space(node, VAE_LOADERS)
    for decoder in (GraphNode(node.graph, key) for key in node.graph):
        if own and decoder.kind in DECODERS and next(decoder.before("vae"), None) == node and _runs(decoder):
            model = _model_loader(decoder)
            if model is not None and any(sampler_fits(model)):
                continue  # which of the two was meant is not known; the model's loader says it
            needed = _space(model, MODEL_LOADERS)
            if needed and needed != own:
                text = (
                    f"this VAE is {own.name}, and the model whose latents it decodes has {needed.name}: load that one"
                )
                yield input_name, text


def _model_loader(decoder: GraphNode) -> GraphNode | None:
    """The loader of the model that sampled what a node decodes."""
    for sampler in decoder.before(*SAMPLES):
        guide = sampler.source("guider") or sampler
        if guide.source("model"):
            return _loader_of(guide)
    return None


def _runs(node: GraphNode) -> bool:
    """Whether the result of a node goes anywhere: a sampler that was left aside on the canvas is not checked."""
    waiting, seen = [node], {node.key}
    while waiting:
        followers = list(waiting.pop().after())
        if any(follower.kind not in IDLE for follower in followers):
            return True
        waiting += [each for each in followers if each.key not in seen]
        seen |= {each.key for each in followers}
    return node.kind not in IDLE


def _loader_of(guide: GraphNode) -> GraphNode | None:
    """The loader of a sampler's or a guider's model."""
    return next((node for node in guide.before("model") if node.kind in MODEL_LOADERS), None)


def _space(loader: GraphNode | None, loaders: dict) -> LatentSpace | None:
    """The latent space of what a loader loads, from the headers of its files; None if it cannot be told."""
    path = None if loader is None else loaded_path(loader, loaders)
    return None if path is None else facts.latent_space(path)


def loaded_path(loader: GraphNode, loaders: dict) -> Path | None:
    """The file or folder that a loader loads, or None."""
    try:
        found = named_model(loader.kind, str(loader.inputs.get(folders.LOADERS[loader.kind][0])))
    except (OSError, ValueError):
        return None
    return found / loaders[loader.kind]


def named_model(loader: str, name: str) -> Path:
    """The file or folder that a loader's class means by a name; FileNotFoundError or ValueError if there is none."""
    roots = [root for kind in folders.LOADERS[loader][1] for root in host.current().roots(kind)]
    return folders.find_model(roots, name, "model")


def selection_fits(node: GraphNode) -> Iterator[Problem]:
    """A start outside the frames, where the graph tells how many there are."""
    count, start = frame_count(node), node.inputs.get("start")
    if count is not None and isinstance(start, int) and not -count <= start < count:
        yield "start", f"start is {start} and there are {count} frames: give {-count} to {count - 1}"


def frame_count(node: GraphNode) -> int | None:
    """The number of frames that a node's images are, or None if the graph does not tell."""
    for before in node.before(*IMAGES):
        frames, batch = before.inputs.get("frames"), before.inputs.get("batch_size", 1)
        if before.kind in ("SanaEmptyVideoLatent", "SanaImageToVideoLatent"):
            space = _space(next(before.before("vae"), None), VAE_LOADERS)
            if space is None or batch != 1 or not isinstance(frames, int):
                return None
            return (frames - 1) // space.frames * space.frames + 1
        if before.kind == "EmptyImage":
            return batch if isinstance(batch, int) else None
        if before.kind not in (*DECODERS, "SanaFlowSample", "SanaLongVideoSample", "KSampler", "SamplerCustomAdvanced"):
            return None
    return None
