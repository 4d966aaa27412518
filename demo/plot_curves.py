"""Draw the two loss curves: ``python demo/plot_curves.py FOLDER`` writes demo/loss.png (needs matplotlib)."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def smoothed(values: list[float], window: int = 25) -> list[float]:
    return [
        sum(values[max(0, i - window) : i + 1]) / len(values[max(0, i - window) : i + 1]) for i in range(len(values))
    ]


def main(folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    for axis, name in zip(axes, ("autoencoder", "sprint")):
        steps, losses, errors = zip(*json.loads((folder / f"{name}_curve.json").read_text()))
        axis.semilogy(steps, losses, alpha=0.25, color="tab:blue")
        axis.semilogy(steps, smoothed(losses), color="tab:blue", label="loss")
        axis.semilogy(steps, smoothed(errors), color="tab:orange", label="mean absolute error")
        axis.set_title("DC-AE" if name == "autoencoder" else "SANA-Sprint and Gemma-2")
        axis.set_xlabel("step")
        axis.legend()
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("loss.png"), dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
