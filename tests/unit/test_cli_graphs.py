"""Three hundred graphs by hypothesis end with 0, 1 or 2 and no traceback; 4,000 do in benchmarks/hostile_graphs.py."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import api_graphs
from hypothesis import HealthCheck, given, settings
from sana_nodes import host

COUNTS: Counter = Counter()


def test_hypothesis_graphs(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", "")
    monkeypatch.setenv("SANA_NODES_HOME", str(tmp_path))
    api_graphs.prepare(tmp_path)
    checks = list(HealthCheck)

    @settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=checks)
    @given(api_graphs.WORKFLOWS)
    def ends_in_a_sentence(data):
        code, _ = api_graphs.run(data, tmp_path)
        COUNTS[code] += 1

    try:
        ends_in_a_sentence()
    finally:
        host._current = None
    assert COUNTS[0] >= 10 and COUNTS[1] >= 3 and COUNTS[2] >= 100, f"graphs of too few kinds: {dict(COUNTS)}"
