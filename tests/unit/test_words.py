"""The vocabulary: one term for each thing in code, messages, tooltips, help pages and documentation."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize

import pytest
import tiny
from sana_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

ROOT = tiny.REPOSITORY
CODE = ("nodes", "samplers", "networks", "model_loaders", "media", "host", "cli", "batch", "tools")
CODE += ("demo", "benchmarks")
DOCUMENTS = ("*.md", "docs/**/*.md", "demo/*.md", "web/**/*.md", "model_loaders/*.json", "locales/en/*.json")
WORKFLOWS = ("example_workflows/*.json", "example_workflows/api/*.json")

TERMS = {
    r"pictures?": "image",
    r"draws?|drawn|drew|drawings?|paint(?:s|ed|ing)?": "generate, sample or render",
    r"windows?|windowed": "tile",
    r"anew|afresh": "again",
    r"manieth": "every n-th",
    r"whichever": "a plain sentence",
    r"thereof|therein|hence|whence": "a plain sentence",
    r"wants": "needs",
    r"goes on|go on|went on": "continues or resumes",
    r"led by": "after, with or from",
    r"lies? beside|lie(?:s)? beside": "is next to",
    r"cannot be had": "is not available",
    r"know(?:s)? nothing": "a plain sentence",
    r"of its own": "its own, or separate",
    r"is no whole": "is not a whole",
    r"is no name|is none of|are none of": "is not",
    r"the very": "the same",
    r"to the letter": "literally",
    r"a 32nd|an 8th|a 4th": "1/32",
}
"""Word or phrase, and what to write instead."""

NAMES = ("said", "told", "held", "asked", "fitting", "place", "places", "fine", "bring", "brings")
"""Identifiers that say nothing: name the thing."""

EXCEPTIONS = {
    ("docs/core-nodes.md", "windows?|windowed"): "ComfyUI's context windows along time",
    ("model_loaders/gemma_config.py", "windows?|windowed"): "sliding_window of transformers' Gemma2Config",
    ("samplers/noise.py", "draws?|drawn|drew|drawings?|paint(?:s|ed|ing)?"): "draw from a random distribution",
    ("host/comfyui/long_video.py", "windows?|windowed"): "ComfyUI's context windows along time",
    ("docs/nodes.md", "windows?|windowed"): "ComfyUI's context windows along time",
    ("web/docs/SanaLongVideoSample/en.md", "windows?|windowed"): "ComfyUI's context windows along time",
    ("samplers/block_causal.py", "draws?|drawn|drew|drawings?|paint(?:s|ed|ing)?"): "noise.draw",
    ("nodes/latents.py", "draws?|drawn|drew|drawings?|paint(?:s|ed|ing)?"): "noise.draw",
    ("nodes/sampling.py", "draws?|drawn|drew|drawings?|paint(?:s|ed|ing)?"): "noise.draw",
    ("media/sketch.py", "draws?|drawn|drew|drawings?|paint(?:s|ed|ing)?"): "ImageDraw of Pillow",
    ("nodes/sketch.py", "draws?|drawn|drew|drawings?|paint(?:s|ed|ing)?"): "what people search for",
    ("demo/language.py", "place"): "a word class of the demo's prompts",
    ("demo/train_sprint.py", "place"): "a word class of the demo's prompts",
}
"""File and term or name, and the reason. An exception that nothing needs is an error."""

OTHER_NAMES = r"\.pictures\b|\bpictures\.py|\bWindows\b"
"""media/pictures.py, which keeps the name that the architecture gives it, and the operating system."""


def files(patterns: tuple[str, ...]) -> list[str]:
    return sorted({f.relative_to(ROOT).as_posix() for pattern in patterns for f in ROOT.glob(pattern)})


def modules() -> list[str]:
    return files(("*.py", *(f"{room}/**/*.py" for room in CODE)))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def strings_of(value) -> list[str]:
    """Every string in JSON, without the keys of objects."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in strings_of(child)]


def shown_in_workflow(name: str) -> str:
    """Titles and notes of a workflow; its other values are inputs and stay as they are."""
    nodes = json.loads(read(name))
    titles = strings_of(
        [node.get("_meta", {}) for node in nodes.values() if isinstance(node, dict) and "class_type" in node]
    )
    for node in nodes.get("nodes", []):
        titles += [node.get("title", "")] + (strings_of(node["widgets_values"]) if "Note" in node["type"] else [])
    return "\n".join(titles)


def text_of(name: str) -> str:
    """What a file says; in code also identifiers and comments."""
    if name.startswith("example_workflows/"):
        return shown_in_workflow(name)
    return "\n".join(strings_of(json.loads(read(name)))) if name.endswith(".json") else read(name)


def terms_in(text: str) -> dict[str, str]:
    """Each forbidden term in a text and the words around its first occurrence; ``_`` separates words."""
    text = re.sub(r"\s+", " ", re.sub(OTHER_NAMES, "", text))
    found = {}
    for term in TERMS:
        if match := re.search(rf"(?<![a-zA-Z])(?:{term})(?![a-z])", text, re.IGNORECASE):
            found[term] = text[max(0, match.start() - 40) : match.end() + 40]
    return found


def names_in(source: str) -> set[str]:
    """Forbidden identifiers in a module; attributes and keyword arguments are identifiers too."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME} & set(NAMES)


def class_keys_in(text: str) -> list[str]:
    """Our node classes that a text names by their key and not by their display name."""
    return [key for key in re.findall(r"\bSana[A-Z]\w+", text) if key in NODE_CLASS_MAPPINGS]


def unknown_nodes_in(text: str) -> list[str]:
    """Names such as "Sana Flow Sampel" that are not the display name of a node."""
    text = re.sub(r"[\s\"]+", " ", re.sub(r"\n\s*\n", "\n.\n", text))
    phrases = re.findall(r"\bSana(?: [A-Z]\w*)+", text)
    known = (*NODE_DISPLAY_NAME_MAPPINGS.values(), "Sana Nodes")
    return [phrase for phrase in phrases if not any(phrase == name or phrase.startswith(f"{name} ") for name in known)]


def literals_of(source: str) -> list[str]:
    """String literals of a module, with adjacent and formatted ones as one text, except those that are a class key."""
    tree = ast.parse(source)
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            texts.append(node.value)
    return [text for text in texts if text not in NODE_CLASS_MAPPINGS]


ALL = [*modules(), *files(DOCUMENTS), *files(WORKFLOWS)]


@pytest.mark.parametrize("name", ALL)
def test_terms(name):
    found = {term: where for term, where in terms_in(text_of(name)).items() if (name, term) not in EXCEPTIONS}
    assert not found, "\n".join(f"…{where}…: write {TERMS[term]}" for term, where in found.items())


@pytest.mark.parametrize("name", modules())
def test_identifiers_name_the_thing(name):
    found = {word for word in names_in(read(name)) if (name, word) not in EXCEPTIONS}
    assert not found


@pytest.mark.parametrize("name", ALL)
def test_nodes_are_named_as_the_canvas_shows_them(name):
    texts = literals_of(read(name)) if name.endswith(".py") else [text_of(name)]
    for text in texts:
        assert not class_keys_in(text) and not unknown_nodes_in(text), text[:200]


def test_every_exception_is_needed():
    for name, term in EXCEPTIONS:
        found = names_in(read(name)) if term in NAMES else terms_in(text_of(name))
        assert term in found, f"{name} no longer has {term}: remove its exception"


@pytest.mark.parametrize(
    "text",
    ["a Picture", "random_picture(rng)", "PICTURES = 1", "it draws it", "it is decoded in windows", "every how manieth",
     "it cannot be had", "the run goes on", "goes\n    on", "knows nothing of it", "whichever divides"],
)  # fmt: skip
def test_the_terms_see_what_they_forbid(text):
    assert terms_in(text)


@pytest.mark.parametrize("text", ["withdraw", "an image", "pictured", "the latent of an image", "rewindow"])
def test_the_terms_leave_other_words_alone(text):
    assert not terms_in(text)


def test_the_names_see_what_they_forbid():
    assert names_in("said = f(held=1).place  # told\n'fine'\n") == {"said", "held", "place"}
    assert not names_in("placed = unsaid\n")


def test_the_node_names_see_what_they_forbid():
    assert class_keys_in("use SanaSCMSigmas") == ["SanaSCMSigmas"]
    assert not class_keys_in("SanaSprintPipeline and Sana SCM Sigmas")
    assert unknown_nodes_in("use Sana Flow Sampel") and not unknown_nodes_in("use Sana Flow\n  Sample or Sana Nodes")
    assert sorted(literals_of("x = 'a' 'b', f'c{1}d', 'SanaSCMSample'")) == ["ab", "c{}d"]
