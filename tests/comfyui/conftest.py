"""The embedded host beside a ComfyUI, over the same models: what runs on one is run on the other and compared."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes import host as hosts
from sana_nodes.host.embedded import graph as executor


@pytest.fixture
def embedded_files(home, tmp_path):
    """Run a graph on the embedded host: the files that it saved."""
    folders = hosts.use("embedded").folders
    folders.models, folders.input, folders.output = [home / "models"], home / "input", tmp_path
    yield lambda graph: [p for paths in executor.run(graph, NODE_CLASS_MAPPINGS, folders).saved.values() for p in paths]
    hosts._current = None


@pytest.fixture
def embedded(embedded_files):
    """Run a graph on the embedded host: the images that it saved, uint8 [B, H, W, 3]."""
    return lambda graph: np.stack([np.asarray(Image.open(path)) for path in embedded_files(graph)])
