"""One process of two that save under the same prefixes: ``python savers.py FOLDER PROCESS SAVES ROUND …``.

A round is FORMAT or FORMAT/FORMAT, one for each process; both begin it together and save under a prefix of its
own. Each save has one colour, made from the process and the save's number. FOLDER/saved-PROCESS.json then holds,
for each round, a list of [paths, colour].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

FRAMES = 3


STEP = 0.9 / 64


def colour(process: int, save: int) -> list[float]:
    """One of 64 greys, a STEP apart: grey is the same for every version's conversion to RGB."""
    return [0.05 + STEP * (2 * save + process)] * 3


def frames(process: int, save: int, count: int):
    import torch

    return torch.tensor(colour(process, save)).expand(count, 16, 16, 3)


def save_once(format: str, images, prefix: str) -> list[str]:
    """The paths of one save: SaveImage, a batch of images by Sana Save Frames, or a video."""
    import drawing
    from sana_nodes import host
    from sana_nodes.host.embedded.core_nodes import SaveImage

    if format == "SaveImage":
        return SaveImage().save(images, host.current().folders, {}, prefix)["ui"]["images"]
    if format.startswith("frames-"):
        given = {"format": format.removeprefix("frames-"), "filename_prefix": prefix}
        return drawing.call("SanaSaveFrames", images=images, **given)["ui"]["images"]
    return [drawing.call("SanaSaveVideo", images=images, format=format, filename_prefix=prefix)["result"][1]]


def meet(folder: Path, process: int, number: int) -> None:
    """Wait for the other process at the beginning of a round."""
    (folder / f"ready-{number}-{process}").touch()
    while not (folder / f"ready-{number}-{1 - process}").exists():
        time.sleep(0.0005)


def main(folder: Path, process: int, saves: int, rounds: list[str]) -> None:
    from sana_nodes import host

    host.use("embedded").folders.output = folder / "output"
    done = []
    for number, formats in enumerate(rounds):
        format = (formats.split("/") * 2)[process]
        save_once(format, frames(process, 0, 1), "warm/up")  # everything is imported
        meet(folder, process, number)
        prefix = f"{number}/Sana"
        done.append([(save_once(format, frames(process, i, FRAMES), prefix), colour(process, i)) for i in range(saves)])
    (folder / f"saved-{process}.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
