"""The check of the libraries' versions: what is too old is named with the command that upgrades it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest
import tiny
from sana_nodes.model_loaders import versions
from sana_nodes.model_loaders.versions import REQUIRED, Library, UnusableLibrary, check_libraries, release


def pretend(monkeypatch, **found: str | None):
    """Let these versions be installed, by the name of the distribution."""
    real = versions.installed_version
    monkeypatch.setattr(
        versions, "installed_version", lambda library: found[library.name] if library.name in found else real(library)
    )


def test_what_is_installed_here_is_new_enough():
    check_libraries()


def test_an_old_library_is_named_with_its_version_and_the_command(monkeypatch):
    pretend(monkeypatch, diffusers="0.36.0")
    with pytest.raises(UnusableLibrary) as caught:
        check_libraries()
    least = next(library.least for library in REQUIRED if library.name == "diffusers")
    assert str(caught.value).startswith(f"diffusers 0.36.0 is too old: {least} or later is needed for SANA's transf")
    assert f'"{sys.executable}" -m pip install --upgrade "diffusers>={least}"' in str(caught.value)
    assert "torch" not in str(caught.value)


def test_one_message_names_all_that_is_missing_or_old(monkeypatch):
    pretend(monkeypatch, einops=None, torch="2.3.1+cu121")
    with pytest.raises(UnusableLibrary) as caught:
        check_libraries()
    said = str(caught.value)
    assert "torch 2.3.1+cu121 is too old" in said and "einops is not installed" in said
    assert said.count("-m pip install") == 1 and '"torch>=' in said and '"einops>=' in said


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("2.13.0+cpu", (2, 13, 0)),
        ("2.10.0a0+git1234", (2, 10, 0)),
        ("0.42.0.dev0", (0, 42, 0)),
        ("5.0.0rc1", (5, 0, 0)),
        ("2.4", (2, 4)),
        ("unknown", ()),
    ],
)
def test_the_numbers_of_a_version(version, numbers):
    assert release(version) == numbers


@pytest.mark.parametrize(("found", "usable"), [("0.9.10", True), ("0.9.9", True), ("0.9.8", False), ("0.10.0", True)])
def test_versions_are_compared_as_numbers(monkeypatch, found, usable):
    pretend(monkeypatch, some=found)
    if usable:
        check_libraries([Library("some", "0.9.9", "some", "x")])
    else:
        with pytest.raises(UnusableLibrary):
            check_libraries([Library("some", "0.9.9", "some", "x")])


def test_a_module_without_metadata_is_taken_and_a_missing_one_is_not(monkeypatch):
    """A checkout on the path (diffusers' main, say) has no version in the environment: it is the person's own."""
    monkeypatch.setattr(metadata, "version", lambda name: (_ for _ in ()).throw(metadata.PackageNotFoundError(name)))
    check_libraries([Library("json", "9.0", "json", "x")])
    with pytest.raises(UnusableLibrary, match="no_such_module is not installed"):
        check_libraries([Library("no_such_module", "9.0", "no_such_module", "x")])


def test_the_check_imports_no_library():
    code = "import sys\nfrom importlib import util\nspec = util.spec_from_file_location('versions', sys.argv[1])\n"
    code += "module = util.module_from_spec(spec)\nsys.modules['versions'] = module\nspec.loader.exec_module(module)\n"
    code += "module.check_libraries()\nprint(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    file = tiny.REPOSITORY / "model_loaders" / "versions.py"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LOADERS = {
    "SanaLoadPipeline": {"pipeline": "tiny", "weight_dtype": "default"},
    "SanaLoadTransformer": {"model_name": "tiny", "weight_dtype": "default"},
    "SanaLoadTextEncoder": {"encoder_name": "tiny", "weight_dtype": "default", "device": "default"},
    "SanaLoadVAE": {"vae_name": "tiny", "weight_dtype": "default"},
    "SanaLoadControlNet": {"control_net_name": "tiny-control", "weight_dtype": "default"},
    "SanaResolution": {"width": 1024, "height": 1024, "bins": "1024px"},
}
"""The nodes that need diffusers or transformers before any loader has asked for them."""


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_node_that_needs_them_asks_first(host, monkeypatch, name):
    from sana_nodes import NODE_CLASS_MAPPINGS

    pretend(monkeypatch, diffusers="0.30.0", transformers="4.40.0")
    cls = NODE_CLASS_MAPPINGS[name]
    with pytest.raises(UnusableLibrary, match=re.escape("diffusers 0.30.0 is too old")):
        getattr(cls(), cls.FUNCTION)(**LOADERS[name])
