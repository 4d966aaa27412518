"""The archive that the ComfyUI registry would publish: the tracked files that .comfyignore does not leave out."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
import tiny

ROOT = tiny.REPOSITORY


def archived() -> list[str]:
    """What is in the archive."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: what is tracked is not known")
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    left_out = [line for line in lines if line and not line.startswith("#")]
    files = [file for file in done.stdout.splitlines() if (ROOT / file).is_file()]
    return [f for f in files if not any(f == one or (one.endswith("/") and f.startswith(one)) for one in left_out)]


def pack(archive: Path, without: str | None = None) -> Path:
    """Write the archive, where asked without the files below a folder."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in archived():
            if without is None or not file.startswith(without):
                packed.write(ROOT / file, file)
    return archive
