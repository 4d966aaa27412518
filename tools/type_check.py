"""mypy over the package: ``python tools/type_check.py`` needs mypy and nothing of the pack's own.

mypy needs the name of the package to be the name of its folder, and a clone may be called sana-nodes: it gets a copy
of the sources under the package's name. Its settings are in pyproject.toml.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_CHECKED = (".*", "__pycache__", "*.egg-info", "build", "dist", "benchmarks", "demo", "tests", "models", "output")


def main() -> int:
    """mypy's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "sana_nodes"
        shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns(*NOT_CHECKED))
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "-p", "sana_nodes"]
        return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
