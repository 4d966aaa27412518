"""Subgraph blueprints and apps: the files are what the tools write, and they are made of the templates."""

from __future__ import annotations

import json

import pytest
import tiny
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.tools import blueprints, workflows
from sana_nodes.tools.templates import templates
from sana_nodes.tools.templates.core import CORE
from sana_nodes.tools.templates.parts import apps
from sana_nodes.tools.templates.parts import blueprints as all_blueprints
from sana_nodes.tools.templates.source import is_link, kinds_of

FOLDER = tiny.REPOSITORY / "example_workflows"
BLUEPRINTS = {made.title: made for made in all_blueprints()}


@pytest.mark.parametrize("title", BLUEPRINTS)
def test_blueprints_are_what_the_tool_writes(title):
    made = BLUEPRINTS[title]
    written = blueprints.file(made).read_text(encoding="utf-8")
    assert written == blueprints.text(made), "run: python -m sana_nodes.tools.blueprints"


def test_there_are_no_other_blueprints_and_they_are_small():
    """The editor reads all of them when it starts."""
    files = list(blueprints.FOLDER.iterdir())
    assert {file.name for file in files} == {f"{title}.json" for title in BLUEPRINTS}
    assert sum(file.stat().st_size for file in files) < 25_000


def inside(title: str) -> tuple[dict, dict]:
    """The one node of a blueprint, and the subgraph that it stands for."""
    whole = json.loads(blueprints.file(BLUEPRINTS[title]).read_text(encoding="utf-8"))
    [node], [definition] = whole["nodes"], whole["definitions"]["subgraphs"]
    assert node["type"] == definition["id"] and definition["name"] == title
    return node, definition


def values_of(node: dict) -> dict:
    """The widgets' values of a saved node, by name."""
    values, found = iter(node["widgets_values"]), {}
    for key, kind in kinds_of(node["type"]).items():
        if kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            continue
        found[key] = next(values)
        if key == "seed":
            next(values)
    return found


@pytest.mark.parametrize("title", BLUEPRINTS)
def test_a_blueprint_is_the_template_s_nodes_and_links(title):
    made, (_, definition) = BLUEPRINTS[title], inside(title)
    graph = templates()[made.template].graph
    links = {link["id"]: link for link in definition["links"]}
    for node in definition["nodes"]:
        wanted = graph[str(node["id"])]
        assert node["type"] == wanted["class_type"] and node["title"] == wanted["_meta"]["title"]
        for key, value in values_of(node).items():
            assert value == wanted["inputs"][key]
        inputs = {each["name"]: links.get(each["link"]) for each in node["inputs"]}
        for key, value in wanted["inputs"].items():
            if is_link(value) and (str(node["id"]), key) not in made.inputs.values():
                link = inputs[key]
                assert [str(link["origin_id"]), link["origin_slot"]] == value


@pytest.mark.parametrize("title", BLUEPRINTS)
def test_both_ends_of_a_blueprint_s_links_agree(title):
    node, definition = inside(title)
    nodes = {each["id"]: each for each in definition["nodes"]}
    for link in definition["links"]:
        if link["target_id"] == blueprints.EXIT:
            target = definition["outputs"][link["target_slot"]]
            assert link["id"] in target["linkIds"]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert target["link"] == link["id"]
        if link["origin_id"] == blueprints.ENTRY:
            source = definition["inputs"][link["origin_slot"]]
            assert link["id"] in source["linkIds"]
        else:
            source = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in source["links"]
        assert source["type"] == target["type"] == link["type"]
    assert [each["name"] for each in node["inputs"]] == [each["name"] for each in definition["inputs"]]
    assert all(each["linkIds"] for each in definition["inputs"] + definition["outputs"])


def test_the_three_commonest_jobs_are_there():
    ends = {title: ([*made.inputs], [*made.outputs]) for title, made in BLUEPRINTS.items()}
    assert {"prompt", "seed", "pipeline"} <= set.intersection(*(set(inputs) for inputs, _ in ends.values()))
    assert "image" in ends["SANA-Sprint image to image"][0] and "frames" in ends["SANA-Video text to video"][0]


@pytest.mark.parametrize("title", apps())
def test_apps_are_what_the_tool_writes(title):
    written = (FOLDER / f"{title}.json").read_text(encoding="utf-8")
    assert written == workflows.app_text(title), "run: python -m sana_nodes.tools.workflows"


@pytest.mark.parametrize("title", apps())
def test_an_app_shows_inputs_and_results_of_its_template(title):
    made = apps()[title]
    template = templates()[made.template]
    graph = json.loads((FOLDER / f"{title}.json").read_text(encoding="utf-8"))
    extra = graph["extra"]
    assert extra["linearMode"] is True and title == f"{template.title}.app"
    assert graph["nodes"] == workflows.editor(template)["nodes"]
    for node, key in extra["linearData"]["inputs"]:
        assert not is_link(template.graph[node]["inputs"][key])
    for node in extra["linearData"]["outputs"]:
        kind = template.graph[node]["class_type"]
        assert kind in CORE or NODE_CLASS_MAPPINGS[kind].OUTPUT_NODE
    image, own = (FOLDER / f"{title}.jpg").read_bytes(), (FOLDER / f"{template.title}.jpg").read_bytes()
    assert image == own
