"""Write the page's table of trained sizes from diffusers: ``python -m sana_nodes.tools.bins``."""

from __future__ import annotations

import json
from pathlib import Path

from ..networks.latent_spaces import DC_AE, LTX2, WAN
from ..networks.resolutions import BIN_NAMES, bins_of

FILE = Path(__file__).resolve().parent.parent / "web" / "bins.json"
CELLS = {"video 480p": 2 * WAN.cell, "video 720p": LTX2.cell}
"""Pixels on a side of a token, where it is not DC-AE's cell: SANA-Video 480p has a patch of two cells of Wan's VAE."""


def text() -> str:
    """bins.json: by table the side of a token, whether it is for video, and rows of ratio, width and height."""
    tables = {}
    for name in BIN_NAMES:
        sizes = [[ratio, *size] for ratio, size in bins_of(name).items()]
        tables[name] = {"cell": CELLS.get(name, DC_AE.cell), "video": name.startswith("video"), "sizes": sizes}
    return json.dumps(tables, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
