"""What ComfyUI runs, the embedded host runs to the same values; what ComfyUI refuses, it does not run.

The graphs are tests/support/same_graphs.py's. Core nodes are those of ComfyUI 0.33, so with an older one the files
that its loader reads otherwise are left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SUPPORT = Path(__file__).resolve().parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

import same_graphs  # noqa: E402
import tiny  # noqa: E402
from sana_nodes import NODE_CLASS_MAPPINGS, host  # noqa: E402
from sana_nodes.host.embedded import graph as executor  # noqa: E402

pytestmark = pytest.mark.comfyui

VERSION = re.search(r'"(.*)"', (tiny.COMFYUI / "comfyui_version.py").read_text())[1] if tiny.COMFYUI else "0.33.0"
OLD = tuple(map(int, VERSION.split("."))) < (0, 33)
SAME_IN_OLD = ("rgba.png", "tall.png")
"""Files that Pillow, which older loaders read with, and PyAV read alike."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, dict]:
    """What happened to each graph in ComfyUI, in a process of its own."""
    folder = tmp_path_factory.mktemp("theirs")
    command = [sys.executable, str(SUPPORT / "same_graphs.py"), str(tiny.COMFYUI), str(folder / "home")]
    done = subprocess.run([*command, str(folder / "results.pt")], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Runs a graph of the table on the embedded host."""
    home = tmp_path_factory.mktemp("ours") / "home"
    same_graphs.prepare(home)
    chosen = host.use("embedded")
    folders = chosen.folders
    folders.models = [home / "models"]
    folders.input, folders.output, folders.temp = home / "input", home / "output", home / "temp"
    classes = {**NODE_CLASS_MAPPINGS, "TestKeep": same_graphs.Keep}

    def happened(name: str) -> dict:
        graph = same_graphs.renamed(same_graphs.GRAPHS[name], name)
        failures = (executor.NodeFailed,)

        def run(nodes: dict) -> None:
            executor.run(nodes, classes, folders)

        return same_graphs.happened(run, (executor.BadWorkflow,), failures, graph, folders.output)

    yield happened
    host._current = None


def same(a, b) -> bool:
    """Whether two values are equal, their types included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("name", same_graphs.GRAPHS)
def test_same_outcome(name, theirs, ours):
    file = name.removeprefix("file ")
    if OLD and file != name and file not in SAME_IN_OLD:
        pytest.skip(f"ComfyUI {VERSION} reads {file} otherwise than 0.33")
    there, here = theirs[name], ours(name)
    if name in same_graphs.STRICTER:
        assert (there["status"], here["status"]) == ("ran", "refused"), here["message"]
        return
    assert "Traceback" not in there["message"] and len(there["message"]) < 3000
    ran = there["status"] == "ran"
    if name in same_graphs.LOOSER and not ran:
        assert here["status"] == "ran", here["message"]
        return
    assert ran == (here["status"] == "ran"), f"there {there['status']} {there['message']}; here {here['message']}"
    if ran:
        kept = [sorted(found["kept"], key=lambda given: given["name"]) for found in (there, here)]
        assert same(*kept)
        assert same(there["files"], here["files"])
    else:
        assert here["message"] and "Traceback" not in here["message"]
