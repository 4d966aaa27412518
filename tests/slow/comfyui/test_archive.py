"""The registry's archive, unpacked into a fresh ComfyUI, runs the first example."""

from __future__ import annotations

import json
import zipfile

import fresh
import numpy as np
from registry import pack
from server import Server

EXAMPLE = "example_workflows/api/sana_sprint_text_to_image.json"
"""The first example; its prompt is a red ring on the left of a blue background."""


def test_the_archive_is_a_pack_that_generates(tmp_path):
    """Unpacked into a folder of the pack's name, as ComfyUI-Manager does, with nothing of the checkout beside it."""
    home = fresh.home(tmp_path / "comfyui", with_pack=False)
    folder = home / "custom_nodes" / "sana-nodes"
    with zipfile.ZipFile(pack(tmp_path / "pack.zip")) as packed:
        packed.extractall(folder)
    with Server(home) as server:
        graph = json.loads((folder / EXAMPLE).read_text(encoding="utf-8"))
        image = server.pictures(graph)[0].astype(int)
        titles = json.loads(server.get("/workflow_templates"))["sana-nodes"]
        page = server.get("/extensions/sana-nodes/js/sana.js").decode()
    assert image.shape == (256, 256, 3)
    assert is_red_on_the_left_of_blue(image)
    assert "SANA-Sprint text to image" in titles and "registerExtension" in page


def is_red_on_the_left_of_blue(image: np.ndarray) -> bool:
    red, _, blue = (image[..., i] for i in range(3))
    ring = np.argwhere((red > 170) & (blue < 110))
    return bool(len(ring) > 500 and ring[:, 1].mean() < 100 and (blue > 150).mean() > 0.7)
