"""Make the icon and the banner for the ComfyUI registry of the demo weights' images: docs/registry/.

``python -m sana_nodes.tools.registry_images``
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "registry"
ICON, TILE, ACROSS, DOWN = 400, 192, 7, 3
"""Pixels of the icon's side and of a tile; tiles of the banner, which is 21:9."""

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white")
SHAPES = ("ring", "diamond", "circle", "cross", "triangle", "square")


def scenes() -> list[str]:
    """A prompt for each tile: neighbours differ in shape and colours."""
    found = []
    for i in range(ACROSS * DOWN):
        colour, ground = COLOURS[i * 3 % 7], COLOURS[(i * 3 + 2 + i // 7) % 7]
        article, before = ("an" if word[0] in "aeiou" else "a" for word in (colour, ground))
        found.append(f"{article} {colour} {SHAPES[i * 5 % 6]} in the centre of {before} {ground} background")
    return found


def main() -> None:
    from PIL import Image

    from .templates import templates
    from .thumbnails import generate

    FOLDER.mkdir(exist_ok=True)
    banner = Image.new("RGB", (TILE * ACROSS, TILE * DOWN))
    with tempfile.TemporaryDirectory() as scratch:
        [image] = generate(dict(templates()["sana_sprint_lora"].graph), Path(scratch) / "icon")
        image.resize((ICON, ICON), Image.Resampling.LANCZOS).save(FOLDER / "icon.png", optimize=True)
        for i, scene in enumerate(scenes()):
            graph = {key: dict(node) for key, node in templates()["sana_sprint_text_to_image"].graph.items()}
            graph["2"] = {**graph["2"], "inputs": {**graph["2"]["inputs"], "text": scene}}
            [image] = generate(graph, Path(scratch) / str(i))
            tile = image.resize((TILE, TILE), Image.Resampling.LANCZOS)
            banner.paste(tile, (i % ACROSS * TILE, i // ACROSS * TILE))
            sys.stderr.write(f"{scene}\n")
    banner.save(FOLDER / "banner.jpg", quality=88)


if __name__ == "__main__":
    main()
