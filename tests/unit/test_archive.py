"""What .comfyignore leaves for the registry's archive: everything that runs, no tests, and not too much of it."""

from __future__ import annotations

from pathlib import Path

from registry import ROOT, archived, pack


def test_what_runs_is_in_it_and_tests_are_not():
    files = set(archived())
    wanted = {
        "__init__.py",
        "pyproject.toml",
        "requirements.txt",
        "LICENSE",
        "README.md",
        "model_loaders/published.json",
    }
    assert wanted <= files
    folders = {file.split("/")[0] for file in files}
    assert {
        "nodes",
        "host",
        "networks",
        "samplers",
        "media",
        "cli",
        "web",
        "locales",
        "subgraphs",
        "example_workflows",
    } <= folders
    assert not {"tests", "benchmarks", ".github"} & folders
    assert not [file for file in files if Path(file).name.startswith("train_")]
    assert any(file.startswith("demo/models/") for file in files)


def test_every_line_leaves_something_out():
    for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or (ROOT / line).exists(), line


def test_it_is_small_without_the_demo_weights(tmp_path):
    archive = pack(tmp_path / "pack.zip", without="demo/models/")
    assert archive.stat().st_size < 6_000_000


def test_the_registry_s_images_have_the_sizes_that_it_takes():
    from PIL import Image

    folder = ROOT / "docs" / "registry"
    with Image.open(folder / "icon.png") as icon, Image.open(folder / "banner.jpg") as banner:
        assert icon.size == (400, 400) and banner.width * 9 == banner.height * 21
    assert not [file for file in archived() if file.startswith("docs/registry/")]
