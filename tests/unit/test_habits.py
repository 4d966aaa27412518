"""What runs before a commit and on the forge: the type checker, the hooks and the workflow files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

ROOT = tiny.REPOSITORY
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
CI = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
PUBLISH = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8"))


def bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mypy_finds_nothing():
    done = subprocess.run([sys.executable, "tools/type_check.py"], cwd=ROOT, capture_output=True, text=True)
    if "No module named mypy" in done.stderr:
        pytest.skip("mypy is not installed: pip install sana-nodes[test]")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_hooks_use_the_versions_of_the_test_extra():
    """ruff and mypy say the same before a commit and in the suite; each file a hook runs is there."""
    extra = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = {hook["id"]: hook.get("additional_dependencies", []) for hook in HOOKS}
    assert set(pins) == {"ruff", "ruff-format", "mypy", "check-json", "locales"}
    for name in ("ruff", "ruff-format", "mypy"):
        assert all(f'"{pin}"' in extra for pin in pins[name]) and pins[name], name
    for hook in HOOKS:
        words = hook["entry"].split()
        scripts = [word for word in words if word.endswith(".py")]
        modules = [words[i + 1].split(".")[1:] for i, word in enumerate(words) if word == "-m"]
        assert all((ROOT / script).is_file() for script in scripts)
        assert all(ROOT.joinpath(*parts).with_suffix(".py").is_file() for parts in modules)


def test_the_matrix_covers_every_python_system_and_set_of_versions():
    matrix = CI["jobs"]["suite"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert matrix["os"] == ["ubuntu-latest", "windows-latest", "macos-latest"]
    kinds = set(matrix["versions"]) | {row["versions"] for row in matrix["include"]}
    assert kinds == set(bootstrap().CONSTRAINTS)
    for kind in ("oldest", "newest"):
        assert {row["os"] for row in matrix["include"] if row["versions"] == kind} == set(matrix["os"])


def test_publishing_follows_the_version():
    """It runs when pyproject.toml changes on the default branch, with the secret that the registry gives."""
    push = PUBLISH[True]["push"]  # YAML reads the key `on` as true
    assert push == {"branches": ["main"], "paths": ["pyproject.toml"]}
    step = PUBLISH["jobs"]["publish"]["steps"][-1]
    assert step["uses"].startswith("Comfy-Org/publish-node-action@")
    assert step["with"]["personal_access_token"] == "${{ secrets.REGISTRY_ACCESS_TOKEN }}"


@pytest.mark.parametrize(
    ("versions", "file"), [("", "constraints.txt"), ("oldest", "constraints-oldest.txt"), ("newest", None)]
)
def test_bootstrap_installs_the_chosen_versions(monkeypatch, tmp_path, versions, file):
    module, commands = bootstrap(), []
    monkeypatch.setenv("SANA_NODES_VERSIONS", versions)
    monkeypatch.setattr(module.venv, "create", lambda *_, **__: None)
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(module.subprocess, "run", lambda command, **_: commands.append(command) or done)
    assert module.main(["test", "-x"]) == 0
    install, run = commands
    assert (install[install.index("-c") + 1] if "-c" in install else None) == (file and str(ROOT / file))
    assert install[-1] == f"{ROOT}[test]" and run[1:3] == ["-m", "pytest"] and run[-1] == "-x"
    assert 1 <= int(run[run.index("-n") + 1]) <= 4, "tests run at the same time, and take memory"
    assert file is None or Path(ROOT / file).is_file()


def test_bootstrap_names_what_it_does_not_know(monkeypatch, capsys):
    monkeypatch.setenv("SANA_NODES_VERSIONS", "latest")
    assert bootstrap().main(["test"]) == 2
    assert "'latest'; choose one of tested, oldest, newest" in capsys.readouterr().err


def test_bootstrap_ends_with_a_sentence_where_pip_fails(monkeypatch, capsys):
    module = bootstrap()

    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(module.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(module.subprocess, "run", fail)
    assert module.main(["test"]) == 1
    assert "failed; its reason is above" in capsys.readouterr().err


def test_modules_that_are_imported_by_name_alone_have_different_names():
    """Folders that programs and tests put on the path: of two modules with one name, the first would be found."""
    folders = ("tests/support", "benchmarks", "demo")
    names = [file.stem for folder in folders for file in (ROOT / folder).glob("*.py")]
    assert len(names) > 40 and sorted(set(names)) == sorted(names)
