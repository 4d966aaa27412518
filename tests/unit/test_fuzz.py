"""A few hundred damaged files end in our own error; ten thousand do in tests/support/fuzz.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its alarm and memory limit are Linux's")
def test_damaged_files_end_in_our_own_error():
    command = [sys.executable, "tests/support/fuzz.py", "--cases", "200"]
    done = subprocess.run(command, cwd=tiny.REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "200 cases" in done.stdout and "0 ended wrongly" in done.stdout
