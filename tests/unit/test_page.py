"""What the editor's page gets from us: small scripts, texts in every language, tables that are those of the nodes."""

from __future__ import annotations

import json
import re
import urllib.parse

import pytest
import tiny
import torch
from reading import decoded
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.host.contract import SaveTarget
from sana_nodes.media.thumbnail import FRAMES, SIDE, Thumbnail
from sana_nodes.model_loaders.files.folders import LOADERS
from sana_nodes.tools import bins, locales
from sana_nodes.tools.templates import templates

ROOT = tiny.REPOSITORY
SCRIPTS = sorted((ROOT / "web" / "js").glob("*.js"))
OTHERS = [language for language in locales.LANGUAGES if language != "en"]


def content(language: str, name: str) -> dict:
    return json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))


def test_the_scripts_are_small():
    assert SCRIPTS and sum(file.stat().st_size for file in SCRIPTS) < 50_000
    assert (ROOT / "web" / "bins.json").stat().st_size < 5_000


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_locales_are_what_the_tool_writes(language):
    written = (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    assert written == locales.text(language), "run: python -m sana_nodes.tools.locales"


@pytest.mark.parametrize("language", OTHERS)
def test_languages_are_complete(language):
    assert locales.missing(language) == [], "translate in tools/translations, then run the tool"
    table = locales.translations(language)
    same = [
        english for english, text in table.items() if english == text and " " in english and "Sigmas" not in english
    ]
    assert not same, f"not translated: {same}"


def keys_in_scripts() -> set[str]:
    """The keys that the scripts ask for: text("key" …), conditions included, and names of tools."""
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in SCRIPTS)
    calls = re.findall(r"\btext\(([^;]*?)[,)]", scripts)
    return {key for call in calls for key in re.findall(r'"(\w+)"', call)}


def test_every_text_of_the_scripts_is_in_every_language():
    english = content("en", "main.json")["sanaNodes"]
    tools = {"pen", "eraser", "ink", "size", "undo", "clear", "paper"}
    assert keys_in_scripts() | tools == set(english)
    for language in OTHERS:
        other = content(language, "main.json")["sanaNodes"]
        assert list(other) == list(english)
        for key, text in english.items():
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", other[key])), (language, key)


def test_the_table_of_sizes_is_that_of_the_node():
    assert (ROOT / "web" / "bins.json").read_text(encoding="utf-8") == bins.text(), (
        "run: python -m sana_nodes.tools.bins"
    )


HELP = sorted((ROOT / "web" / "docs").glob("*/en.md"))


@pytest.mark.parametrize("page", HELP, ids=lambda page: page.parent.name)
def test_help_pages_say_what_people_look_for(page):
    content = page.read_text(encoding="utf-8")
    assert "## Typical values" in content and "## What goes wrong" in content
    for image in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", content):
        assert (page.parent.parent / image).stat().st_size < 200_000
    linked = re.findall(r"\]\(/api/workflow_templates/sana-nodes/([^)]+)\.json\)", content)
    using = {
        template.title: any(node["class_type"] == page.parent.name for node in template.graph.values())
        for template in templates().values()
    }
    assert linked and {urllib.parse.unquote(name) for name in linked} <= using.keys()
    shows = any(using[urllib.parse.unquote(name)] for name in linked)
    assert shows == any(using.values()), "a template has the node, and the page names none that does"
    assert shows != ("No template has this node" in content)


def test_people_find_the_nodes():
    aliases = {alias for cls in NODE_CLASS_MAPPINGS.values() for alias in cls.SEARCH_ALIASES}
    assert {"nvidia", "inpaint", "text to video", "image to video"} <= aliases


def test_a_thumbnail_is_small_and_as_long_as_the_video(tmp_path):
    frames = torch.linspace(0, 1, 100)[:, None, None, None].expand(-1, 90, 640, 3)
    small = Thumbnail(len(frames), 25)
    passed = list(small.noting(frames.split(1)))
    assert len(passed) == 100 and all(torch.equal(a[0], b) for a, b in zip(passed, frames))
    shown = decoded(small.write(SaveTarget(tmp_path, "t", 1, "").names))
    assert len(shown) <= FRAMES and shown.shape[1:3] == (46, SIDE)
    assert abs(len(shown) / small.fps - 100 / 25) < 0.2
    assert (shown.flatten(1).mean(1) - frames[:: small.stride].flatten(1).mean(1)).abs().max() < 0.05


def test_the_page_asks_for_the_facts_of_every_loader():
    table = re.search(
        r"const INPUTS = \{(.*?)\};", (ROOT / "web" / "js" / "facts.js").read_text(encoding="utf-8"), re.S
    )
    assert dict(re.findall(r"(\w+): \"(\w+)\"", table[1])) == {kind: name for kind, (name, _) in LOADERS.items()}
    for kind, (name, _) in LOADERS.items():
        assert name in NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()["required"]
