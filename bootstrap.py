"""Set up Sana Nodes from a fresh clone, with nothing but Python and its package index.

    python bootstrap.py demo [PROMPT]   make .venv, install, generate an image with the demo weights
    python bootstrap.py test [ARGS]     make .venv, install, run the tests (ARGS go to pytest)

Written for Linux, Windows and macOS, with Python 3.10 to 3.13, with or without a graphics card. The versions that
it installs are those of constraints.txt; SANA_NODES_VERSIONS=oldest takes constraints-oldest.txt, newest takes none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / ".venv"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CONSTRAINTS = {"tested": "constraints.txt", "oldest": "constraints-oldest.txt", "newest": None}
"""The file of versions for each value of SANA_NODES_VERSIONS."""


MOST_WORKERS = 4
"""Tests at the same time; each takes up to 2 GB of memory."""


def install(versions: str) -> None:
    """Make .venv and install this folder with its tests' needs; ``versions``: a key of CONSTRAINTS."""
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True, clear=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    file = CONSTRAINTS[versions]
    constraints = ["-c", str(ROOT / file)] if file else ["--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([*pip, *constraints, "-e", f"{ROOT}[test]"], check=True)


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - this file is what an older Python is started with
        sys.stderr.write(f"Sana Nodes needs Python 3.10 or later; this is {sys.version.split()[0]}\n")
        return 2
    if not arguments or arguments[0] not in ("demo", "test"):
        sys.stderr.write(__doc__)
        return 2
    versions = os.environ.get("SANA_NODES_VERSIONS") or "tested"
    if versions not in CONSTRAINTS:
        sys.stderr.write(f"SANA_NODES_VERSIONS is {versions!r}; choose one of {', '.join(CONSTRAINTS)}\n")
        return 2
    try:
        install(versions)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"the installation into {FOLDER} failed; its reason is above ({error.cmd[-1]})\n")
        return 1
    workers = ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "--dist", "loadfile"]
    command = ["-m", "sana_nodes", "demo"] if arguments[0] == "demo" else ["-m", "pytest", *workers]
    return subprocess.run([str(PYTHON), *command, *arguments[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
