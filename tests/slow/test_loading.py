"""What loading SANA-Sprint 0.6B takes in memory, on both hosts."""

from __future__ import annotations

import sys

import pytest
import tiny

sys.path.insert(0, str(tiny.REPOSITORY / "benchmarks"))
import loading


@pytest.mark.parametrize("layout", ["diffusers", "scaled-fp8"])
@pytest.mark.parametrize("name", ["embedded", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def test_loading_the_06b_transformer_takes_its_weights_and_little_more(tmp_path, name, layout):
    """Peak resident memory above the baseline, with every weight read once, against the weights that stay."""
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from Linux's /proc")
    path = loading.write(layout, tmp_path)
    peak, stays = loading.cost(path, name, str(tiny.COMFYUI))
    path.unlink()
    assert 0.5 < peak / stays <= loading.LIMIT, f"loading took {peak / stays:.2f} times the weights"
