"""Make the templates' thumbnails and the help pages' images: ``python -m sana_nodes.tools.thumbnails [NAME …]``.

True results of the demo weights. NAME is the name of an API twin. A template of published weights runs with the
demo's model in place of its files: SANA's image models with SANA-Sprint's sampler, which is what the demo has, and
SANA-Video at the demo's size.
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

DOCS = Path(__file__).resolve().parent.parent / "web" / "docs" / "images"
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
        sketches = (key for key, each in template.graph.items() if each["class_type"] == "SanaSketch")
        shown = {f"sketch {key}": node("PreviewImage", images=(key, 0)) for key in sketches}
        return {**{key: dict(value) for key, value in template.graph.items()}, **shown}
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


def generate(graph: dict[str, dict], folder: Path) -> list:
    """Run a graph without ComfyUI; the images that it made, four frames of each video."""
    return [image for path in results(graph, folder) for image in _images(path)]


def results(graph: dict[str, dict], folder: Path) -> list[Path]:
    """Run a graph without ComfyUI; the files that it made in ``folder``, previews first."""
    embedded: Any = host.use("embedded")
    embedded.folders.models, embedded.folders.output, embedded.folders.temp = [folder], folder / "out", folder / "temp"
    embedded.folders.user = folder / "user"
    outcome = executor.run(graph, NODE_CLASS_MAPPINGS, embedded.folders)
    return [Path(path) for found in (outcome.previews, outcome.saved) for some in found.values() for path in some]


def _images(path: Path) -> list:
    from PIL import Image

    if path.suffix != ".mp4":
        return [Image.open(path).convert("RGB")]
    import av

    with av.open(str(path)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    return [frames[round(i * (len(frames) - 1) / 3)] for i in range(4)]


def _sheet(images: list):
    """Images in a square: one, two beside each other, or two rows; of three, the last below the middle."""
    from PIL import Image

    count = len(images)
    across, down = (1, 1) if count == 1 else (2, 1) if count == 2 else (2, 2)
    side = SIDE // across
    sheet = Image.new("RGB", (SIDE, side * down), "#202020" if count == 3 else "white")
    for i, image in enumerate(images):
        shown = image.resize((side - LINE,) * 2 if count > 1 else (side, side), Image.Resampling.LANCZOS)
        left = (SIDE - shown.width) // 2 if count == 3 and i == 2 else i % across * (side + LINE // 2)
        sheet.paste(shown, (left, i // across * (side + LINE // 2)))
    return sheet


HELP = {
    "sana_sprint_text_to_image": "text_to_image",
    "sana_sprint_image_to_image": "image_to_image",
    "sana_sprint_inpainting": "inpainting",
    "sana_sprint_sketch": "sketch",
    "sana_sprint_lora": "lora",
    "sana_video_text_to_video": "text_to_video",
    "sana_video_image_to_video": "image_to_video",
    "sana_video_continue": "continue",
}
"""The image of the help pages that a template's result is, in web/docs/images."""


def help_image(path: Path, target: Path) -> None:
    """A result for the help pages: an image of 256 pixels, or a clip that plays."""
    if path.suffix != ".mp4":
        _images(path)[0].resize((256, 256)).save(target, quality=85)
        return
    import av

    with av.open(str(path)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
        rate = video.streams.video[0].average_rate
    assert rate is not None
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0, quality=70)


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name in names or [name for name, made in templates().items() if made.demo or name in SCENES]:
            template = templates()[name]
            paths = results(runnable(name, template), Path(scratch) / name)
            image = _sheet([image for path in paths for image in _images(path)])
            for title in (template.title, *(title for title, made in apps().items() if made.template == name)):
                image.save(FOLDER / f"{title}.jpg", quality=88)
            if name in HELP:
                help_image(paths[-1], DOCS / f"{HELP[name]}.webp")
            sys.stderr.write(f"{name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
