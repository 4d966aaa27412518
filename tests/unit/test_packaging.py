"""What is declared: the dependencies are what the package imports, each bound is one number, every folder ships."""

from __future__ import annotations

import ast
import re
import sys

import pytest
import tiny
from sana_nodes.model_loaders.versions import INT8, REQUIRED, release

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it there
    import tomli as tomllib

ROOT = tiny.REPOSITORY
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "bs4": "beautifulsoup4",
    "websocket": "websocket-client",
}
"""The distribution that brings a module, where their names differ."""

COMFYUI = {
    "comfy_aimdo",
    "comfy_api",
    "aiohttp",
    "comfy",
    "comfy_execution",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "main",
    "nodes",
    "server",
}
"""What only runs inside ComfyUI, which brings it."""

THROUGH_OTHERS = {
    "sentencepiece": "transformers reads a tokenizer.model through it",
}
"""Declared without an import of ours, with the reason."""


def bounds(lines: list[str]) -> dict[str, str]:
    """Least version by distribution of requirement lines such as ``torch>=2.4; marker``."""
    matches = [re.fullmatch(r"([A-Za-z0-9_-]+)(?:>=|==)([0-9.]+)( *;.*)?", line) for line in lines]
    assert all(matches), f"not of the form NAME>=VERSION: {lines}"
    return {match[1].lower().replace("_", "-"): match[2] for match in matches}


def package_files():
    outside = {"tests", "demo", "benchmarks", "build", "dist"}
    for file in sorted(ROOT.rglob("*.py")):
        top = file.relative_to(ROOT).parts[0]
        if top not in outside and not top.startswith(".") and file.name != "bootstrap.py":
            yield file


def imported(source: str) -> set[str]:
    """Top-level modules that a source imports, anywhere in it, but its own package's and the standard library's."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"sana_nodes"}


def undeclared(imports: set[str], declared: set[str]) -> set[str]:
    names = {DISTRIBUTIONS.get(module, module).replace("_", "-") for module in imports - COMFYUI}
    return names - declared


REQUIRED_BOUNDS = bounds(PROJECT["project"]["dependencies"])
EXTRAS = {name: bounds(lines) for name, lines in PROJECT["project"]["optional-dependencies"].items()}


def test_every_import_is_declared():
    files = {file: imported(file.read_text(encoding="utf-8")) for file in package_files()}
    assert len(files) > 50
    declared = REQUIRED_BOUNDS.keys() | {name for extra, lines in EXTRAS.items() if extra != "test" for name in lines}
    missing = {str(file): names for file, modules in files.items() if (names := undeclared(modules, declared))}
    assert not missing


def test_every_dependency_is_imported():
    used = {DISTRIBUTIONS.get(m, m).replace("_", "-") for f in package_files() for m in imported(f.read_text("utf-8"))}
    unused = REQUIRED_BOUNDS.keys() - used - THROUGH_OTHERS.keys()
    assert not unused


def test_the_reader_of_imports_sees_them():
    source = (
        "import os.path\nfrom . import x\ndef f():\n    import yaml\n    from PIL.Image import open\nimport comfy.ops"
    )
    assert imported(source) == {"yaml", "PIL", "comfy"}
    assert undeclared({"yaml", "PIL", "comfy"}, {"pillow"}) == {"pyyaml"}


def test_requirements_are_the_dependencies_without_torch():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in PROJECT["project"]["dependencies"] if not line.startswith("torch>")]
    assert [line for line in lines if line and not line.startswith("#")] == wanted


def test_the_check_at_loading_has_the_same_bounds():
    declared = {**REQUIRED_BOUNDS, **EXTRAS["int8"]}
    for library in (*REQUIRED, INT8):
        width = len(release(library.least))
        numbers = release(declared[library.name])
        assert numbers + (0,) * (width - len(numbers)) == release(library.least), library.name


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_are_not_below_the_bounds(name):
    pins = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    declared = {**REQUIRED_BOUNDS, **EXTRAS["captions"], **EXTRAS["int8"], **EXTRAS["test"]}
    for pin in pins:
        distribution, version = next(iter(bounds([pin]).items()))
        assert release(version) >= release(declared[distribution]), pin


def test_the_oldest_constraints_are_the_bounds():
    """Every declared minimum is a version that ran: constraints-oldest.txt installs exactly those."""
    pins = bounds([p for p in (ROOT / "constraints-oldest.txt").read_text("utf-8").splitlines() if p and p[0] != "#"])
    declared = {**EXTRAS["test"], **EXTRAS["captions"], **EXTRAS["int8"], **REQUIRED_BOUNDS}
    del declared["ruff"], declared["mypy"]  # tools for this repository, at one version
    assert declared.keys() == pins.keys()
    for name, least in declared.items():
        assert release(pins[name])[: len(release(least))] == release(least), name


def test_every_folder_of_the_package_is_listed():
    packages = PROJECT["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT).parts for file in package_files() if file.name == "__init__.py"}
    assert sorted(packages) == sorted(".".join(["sana_nodes", *parts]) for parts in folders)


def test_the_version_is_said_once():
    import sana_nodes

    assert PROJECT["project"]["version"] == sana_nodes.__version__
