"""Plot loss curves: ``python demo/plot_curves.py FOLDER IMAGE NAME …`` (needs matplotlib).

NAME: autoencoder and sprint, video_autoencoder and video, or long_video; FOLDER contains NAME_curve.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def smoothed(values: list[float], width: int = 25) -> list[float]:
    return [sum(values[max(0, i - width) : i + 1]) / len(values[max(0, i - width) : i + 1]) for i in range(len(values))]


TITLES = {
    "autoencoder": "DC-AE",
    "sprint": "SANA-Sprint and Gemma-2",
    "video_autoencoder": "Wan VAE",
    "video": "SANA-Video and Gemma-2",
    "long_video": "LongSANA",
}


def main(folder: Path, image: Path, names: list[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names):
        steps, losses, errors = zip(*json.loads((folder / f"{name}_curve.json").read_text()))
        axis.semilogy(steps, losses, alpha=0.25, color="tab:blue")
        axis.semilogy(steps, smoothed(losses), color="tab:blue", label="loss")
        axis.semilogy(steps, smoothed(errors), color="tab:orange", label="mean absolute error")
        axis.set_title(TITLES[name])
        axis.set_xlabel("step")
        axis.legend()
    figure.tight_layout()
    figure.savefig(image, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
