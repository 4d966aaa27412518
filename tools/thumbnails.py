"""Make the templates' thumbnails, true results of the demo weights: ``python -m sana_nodes.tools.thumbnails [NAME …]``.

NAME is the name of an API twin. A template of published weights runs with the demo's model in place of its files:
SANA's image models with SANA-Sprint's sampler, which is what the demo has, and SANA-Video at the demo's size.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from .. import NODE_CLASS_MAPPINGS, host
from ..host.embedded import graph as executor
from .templates import node, templates
from .templates.parts import apps
from .templates.source import Template, is_link
from .workflows import FOLDER

SIDE = 560
LINE = 4
"""Pixels of a thumbnail, and between two images in it."""
SCENES = {
    "sana_sprint_1.6b_text_to_image": "a purple diamond in the centre of a yellow background",
    "sana_1.5_negative_prompt": "an orange cross on the right of a black background",
    "sana_4k_tiled": "a white triangle in the centre of a purple background",
    "sana_video_easycache": "an orange square moving up on a black background",
    "sana_video_compiled": "a white diamond moving down on a green background",
}
"""What the demo generates for a template of published weights."""


def runnable(name: str, template: Template) -> dict[str, dict]:
    """The graph that makes a template's thumbnail."""
    if template.demo:
        return {key: dict(value) for key, value in template.graph.items()}
    video = "video" in name
    pipeline = node("SanaLoadPipeline", pipeline="sana-video-demo" if video else "sana-sprint-demo")
    outputs = {"1": ("1", 0), "2": ("1", 1), "3": ("1", 2), "5": ("1", 0) if video else ("5", 0)}
    graph = {"1": pipeline}
    for key, given in template.graph.items():
        if given["class_type"].startswith("SanaLoad") or given["class_type"] in ("EasyCache", "TorchCompileModel"):
            continue
        inputs = {
            k: list(outputs.get(v[0], v) if v[0] in outputs and v[1] == 0 else v) if is_link(v) else v
            for k, v in given["inputs"].items()
        }
        graph[key] = {**given, "inputs": inputs}
    return {key: _small(value, SCENES[name], video) for key, value in graph.items()}


def _small(given: dict, scene: str, video: bool) -> dict:
    """A node at the demo's size and in its language; SANA's sampler becomes SANA-Sprint's."""
    kind, inputs = given["class_type"], given["inputs"]
    changes: dict[str, dict] = {
        "SanaEmptyVideoLatent": {"width": 128, "height": 128, "frames": 17},
        "SanaSaveVideo": {"fps": 8.0},
    }
    changes |= {"SanaEmptyLatent": {"width": 256, "height": 256}, "SanaEncodeVideoPrompt": {"prompt": scene}}
    changes |= {"SanaEncodePrompt": {"text": scene}, "SanaFlowSample": {"steps": 12, "cfg": 2.0}}
    if kind == "SanaFlowSample" and not video:
        kept = {key: inputs[key] for key in ("model", "positive", "latent_image", "seed")}
        return node("SanaSCMSample", **kept)
    if kind == "VAEDecodeTiled":
        return node("VAEDecode", samples=inputs["samples"], vae=inputs["vae"])
    return {**given, "inputs": {**inputs, **changes.get(kind, {})}}


def thumbnail(name: str, template: Template, folder: Path):
    """Run a template and show what it made: one image, images side by side, or four frames of a video."""
    embedded: Any = host.use("embedded")
    embedded.folders.models, embedded.folders.output, embedded.folders.temp = [folder], folder / "out", folder / "temp"
    embedded.folders.user = folder / "user"
    outcome = executor.run(runnable(name, template), NODE_CLASS_MAPPINGS, embedded.folders)
    paths = [Path(path) for found in (outcome.previews, outcome.saved) for some in found.values() for path in some]
    images = [image for path in paths for image in _images(path)]
    return _sheet(images)


def _images(path: Path) -> list:
    from PIL import Image

    if path.suffix != ".mp4":
        return [Image.open(path).convert("RGB")]
    import av

    with av.open(str(path)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    return [frames[round(i * (len(frames) - 1) / 3)] for i in range(4)]


def _sheet(images: list):
    """Images in a square: one, two beside each other, or two rows."""
    from PIL import Image

    count = len(images)
    across, down = (1, 1) if count == 1 else (2, 1) if count == 2 else (2, 2)
    side = SIDE // across
    sheet = Image.new("RGB", (SIDE, side * down), "white")
    for i, image in enumerate(images):
        shown = image.resize((side - LINE,) * 2 if count > 1 else (side, side), Image.Resampling.LANCZOS)
        sheet.paste(shown, (i % across * (side + LINE // 2), i // across * (side + LINE // 2)))
    return sheet


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name in sys.argv[1:] or [name for name, made in templates().items() if made.demo or name in SCENES]:
            image = thumbnail(name, templates()[name], Path(scratch))
            for title in (templates()[name].title, *(t for t, made in apps().items() if made.template == name)):
                image.save(FOLDER / f"{title}.jpg", quality=88)
            sys.stderr.write(f"{name}\n")
