"""`sana-nodes demo` as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(output: Path, *arguments: str, most: float) -> Path:
    """The file that the command saved below ``output``; it may take ``most`` seconds of the processors.

    However busy they are with other programs: a clock would count those too.
    """
    command = [sys.executable, "-m", "sana_nodes", "demo", *arguments, "--output", str(output)]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * most)
    after = os.times()
    assert done.returncode == 0, done.stderr[-2000:]
    took = after.children_user + after.children_system - before.children_user - before.children_system
    assert took < most, f"the demo took {took:.0f} s of the processors"
    return Path(done.stdout.strip())
