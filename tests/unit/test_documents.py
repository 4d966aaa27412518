"""README and docs: what they link to is there, and every published file has its address."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
import tiny
from sana_nodes.model_loaders.published import published
from sana_nodes.tools.templates import templates

ROOT = tiny.REPOSITORY
PAGES = sorted(["README.md", "CONTRIBUTING.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))])
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in (unquote(a or b) for a, b in LINK.findall(read(page))):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{page} links to {target}"


def test_every_published_model_and_file_has_its_address():
    text = read("docs/models.md")
    assert not [row.name for row in published() if f"https://huggingface.co/{row.repository})" not in text]
    assert not [m.name for t in templates().values() for m in t.models.values() if m.url not in text]


def test_readme_names_every_template_and_models_that_can_be_downloaded():
    text, names = read("README.md"), {row.name: row for row in published()}
    assert not [template.title for template in templates().values() if f"| {template.title} |" not in text]
    asked = re.findall(
        r"`sana-nodes get ([\w.-]+)` \| .*?\(https://huggingface.co/([\w./-]+)\) into `models/(\w+)/", text
    )
    assert len(asked) > 5
    for name, repository, kind in asked:
        assert (names[name].repository, names[name].kind) == (repository, kind)


def test_every_page_is_reached_from_readme():
    linked = {a for a, _ in LINK.findall(read("README.md"))}
    assert {page for page in PAGES if page.startswith("docs/")} <= linked


LIBRARY = re.compile(
    r"\b(torch|diffusers|transformers|tokenizers|safetensors|numpy|einops|Pillow)[ -](\d+\.\d[\d.]*\d)\b"
)


def lines_of(name: str) -> list[str]:
    return [line for line in read(name).splitlines() if line and not line.startswith("#")]


def test_libraries_are_named_with_a_version_that_is_tested_or_the_oldest():
    """What pip is said to install is what constraints.txt pins, so that a newer pin does not leave the page behind."""
    pinned = {tuple(line.split(";")[0].strip().split("==")) for line in lines_of("constraints.txt")}
    oldest = {tuple(line.split("==")) for line in lines_of("constraints-oldest.txt")}
    named = {(page, *found) for page in PAGES for found in LIBRARY.findall(read(page))}
    assert ("docs/install.md", "diffusers") in {found[:2] for found in named}
    for page, library, version in named:
        assert (library.lower(), version) in pinned | oldest, f"{page} names {library} {version}"
    installed = re.findall(r"Would install ([a-z]+)-([\d.]+)", read("docs/install.md"))
    newest = {tuple(line.split(";")[0].strip().split("==")) for line in lines_of("constraints.txt") if "< " not in line}
    assert installed and set(installed) <= newest


def test_pages_agree_on_the_pythons_and_the_comfyuis_that_are_tested():
    project = read("pyproject.toml")
    pythons = {found for page in PAGES for found in re.findall(r"Python (3\.\d+) to (3\.\d+)", read(page))}
    every = re.search(r"python: \[(.*)\]", read(".github/workflows/ci.yml"))
    assert every is not None
    tested = re.findall(r'"([\d.]+)"', every[1])
    assert pythons == {(tested[0], tested[-1])} and f'requires-python = ">={tested[0]}"' in project
    text = " ".join(read(page).replace("\n", " ") for page in PAGES)
    comfyuis = set(re.findall(r"ComfyUI (0[\d.]+\d(?:, [\d.]+\d)* and [\d.]+\d)", text))
    assert len(comfyuis) == 1 and f'requires-comfyui = ">={comfyuis.pop().split(",")[0]}"' in project
