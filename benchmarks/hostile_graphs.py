"""Give ``sana-nodes run`` thousands of workflow files that no editor would write, and count how it ends.

    python benchmarks/hostile_graphs.py [--cases 4000] [--seed 0]

Each must end with the exit code 0, 1 or 2, a sentence on standard error where it is not 0, and no traceback. Needs
hypothesis (pip install sana-nodes[test]).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import api_graphs
from hypothesis import HealthCheck, given, seed, settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter = Counter()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.environ |= {"COMFYUI_PATH": "", "SANA_NODES_HOME": name}
        api_graphs.prepare(home)

        @seed(options.seed)
        @settings(max_examples=options.cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(api_graphs.WORKFLOWS)
        def ends_in_a_sentence(data):
            code, _ = api_graphs.run(data, home)
            counts[code] += 1

        ends_in_a_sentence()
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(counts.items()))
    print(f"{sum(counts.values())} workflows in {time.perf_counter() - started:.0f} s: {ended}; no traceback")
    return 0


if __name__ == "__main__":
    sys.exit(main())
