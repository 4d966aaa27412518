"""benchmarks/gpu.py on a pretended card, in a process of its own: a row and a model at a small size.

python card_benchmark.py FOLDER ROW MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import card_comfyui
import pretend_card
import tiny

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))  # last: it has a graphs.py as support has


def main() -> int:
    folder, row, model = sys.argv[1:]
    card_comfyui.import_before_the_card()
    with pretend_card.cards():
        import gpu  # it asks for the device when it is imported
        from sana_nodes.networks import accelerated

        gpu.CONFIGS = {model: gpu.CONFIGS[model]}
        accelerated.BACKEND = "eager"  # others make kernels for a real card
        return gpu.main([row, "--small", "--repeats", "1", "--output", folder])


if __name__ == "__main__":
    raise SystemExit(main())
