"""The tests' own helpers for other systems, tried on this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import platforms
import pytest
import tiny

SUPPORT = Path(platforms.__file__).parent


def test_peak_memory_counts_bytes():
    """64 MiB that are written to raise the peak by about that, in a process of its own."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import platforms\nbefore = platforms.peak_memory()\n"
    code += "held = b'x' * (64 << 20)\nprint(before, platforms.peak_memory() - before)"
    done = subprocess.run([sys.executable, "-c", code, str(SUPPORT)], capture_output=True, text=True, check=True)
    before, more = map(int, done.stdout.split())
    assert 2 << 20 < before < 4 << 30 and 56 << 20 < more < 96 << 20


def test_links_are_copied_where_they_are_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert platforms.copy_where_links_are_refused() == platforms.LINKS_ARE_COPIES
    (tmp_path / "folder" / "__pycache__").mkdir(parents=True)
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "copy").symlink_to(tmp_path / "folder", target_is_directory=True)
    (tmp_path / "one").symlink_to(tmp_path / "folder" / "file")
    (tmp_path / "two").symlink_to(Path("folder") / "file")
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["file"]
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == "x"
    assert not (tmp_path / "copy").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses symbolic links to most people")
def test_links_stay_links_where_they_work():
    before = Path.symlink_to
    assert platforms.copy_where_links_are_refused() is None and Path.symlink_to is before


WITHOUT = """
import pathlib, sys
def refuse(*_, **__):
    raise OSError("A required privilege is not held by the client")
pathlib.Path.symlink_to = refuse
sys.modules["resource"] = None
import pytest
sys.exit(pytest.main(["-q", "--collect-only", "tests"]))
"""


def test_every_test_file_is_collected_without_links_and_resource():
    """As on Windows: no module of tests needs either to be imported, and the header says what happens instead."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=tiny.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert platforms.LINKS_ARE_COPIES in done.stdout


def test_the_suite_runs_in_a_folder_whose_name_is_no_identifier(tmp_path):
    """README's clone is called sana-nodes: pytest would import the pack's __init__.py as a test package."""
    clone = tmp_path / "sana-nodes"
    (clone / "tests").mkdir(parents=True)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/support", "tests/tiny.py"):
        if (tiny.REPOSITORY / name).exists():
            platforms.copy_instead(clone / name, tiny.REPOSITORY / name)
    (clone / "__init__.py").write_text("from .nodes import NODE_CLASS_MAPPINGS\n")
    (clone / "tests" / "test_one.py").write_text("def test_one():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_one.py"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]
