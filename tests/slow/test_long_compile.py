"""torch.compile of a long video's calls: the whole network, and blocks that see every block before them."""

from __future__ import annotations

import compiled_blocks
import pytest


@pytest.mark.parametrize(("part", "cached"), [("whole", 0), ("whole", 2), ("blocks", 0)])
def test_blocks_of_a_long_video_share_graphs(part, cached):
    compiled_blocks.share_graphs(part, cached)
