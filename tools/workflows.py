"""Write the example workflows, both forms from tools/templates: ``python -m sana_nodes.tools.workflows [NAME …]``.

NAME is the name of an API twin. The editor's file is called by the template's title, which the template browser shows.
Templates in App mode (tools/templates/parts.py) are written beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .templates import templates
from .templates.core import CORE
from .templates.layout import Box, Layout, arrange, route
from .templates.parts import apps
from .templates.source import NOTE, Template, is_link, is_socket, kinds_of, outputs_of

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
OFF = 4
"""The mode of a node that is switched off (bypassed)."""


def text(name: str) -> str:
    """The file of an example in the editor's format."""
    return _json(editor(templates()[name]))


def api_text(name: str) -> str:
    """The file of its twin in API format."""
    return _json(dict(templates()[name].graph))


def _json(value) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def app_text(title: str) -> str:
    """The file of a template that opens in App mode."""
    made = apps()[title]
    graph = editor(templates()[made.template])
    shown = {"inputs": [list(each) for each in made.inputs], "outputs": list(made.outputs)}
    return _json({**graph, "extra": {**graph["extra"], "linearMode": True, "linearData": shown}})


def files(name: str) -> tuple[Path, Path]:
    """Where an example's two files are: the editor's and the API twin."""
    return FOLDER / f"{templates()[name].title}.json", FOLDER / "api" / f"{name}.json"


def editor(template: Template) -> dict:
    """A template in the editor's format."""
    layout = arrange(template)
    links: list[list] = []
    nodes: list[dict] = []
    everything = {**template.graph, **template.own}
    for order, node_id in enumerate(everything):
        off = node_id in template.own
        nodes.append(_node(node_id, everything[node_id], template, layout.nodes[node_id], order, links, off))
    by_id = {node["id"]: node for node in nodes}
    for link, source, number, *_ in links:
        by_id[source]["outputs"][number]["links"].append(link)
    last = max(by_id) + 1
    nodes.append(_note(last, template.note, layout.nodes[NOTE], len(nodes)))
    groups = [_group(i, group, box) for i, (group, box) in enumerate(zip(template.groups, layout.groups), 1)]
    return {
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": _routes(layout, links),
        "version": 0.4,
    }


def _node(node_id, node: dict, template: Template, box: Box, order: int, links: list[list], off: bool) -> dict:
    kind = node["class_type"]
    types, names = outputs_of(kind)
    model = template.models.get(node_id)
    models = {"models": [{"name": model.name, "url": model.url, "directory": model.directory}]} if model else {}
    return {
        "id": int(node_id),
        "type": kind,
        "title": node["_meta"]["title"],
        "pos": [box.x, box.y],
        "size": [box.width, max(box.height, 60)],
        "flags": {"collapsed": True} if off else {},
        "order": order,
        "mode": OFF if off else 0,
        "inputs": _inputs(node_id, node, links),
        "outputs": [
            {"name": name, "type": type_, "slot_index": i, "links": []}
            for i, (name, type_) in enumerate(zip(names, types))
        ],
        "properties": {"Node name for S&R": kind, **models},
        "widgets_values": widgets(node),
    }


def _inputs(node_id: str, node: dict, links: list[list]) -> list[dict]:
    """A node's sockets; the links into them are numbered and added to ``links``."""
    inputs: list[dict] = []
    for key, kind in kinds_of(node["class_type"]).items():
        if not is_socket(kind):
            continue
        link, given = None, node["inputs"].get(key)
        if is_link(given):
            link = len(links) + 1
            links.append([link, int(given[0]), given[1], int(node_id), len(inputs), kind])
        inputs.append({"name": key, "type": kind, "link": link})
    return inputs


def widgets(node: dict) -> list:
    """Values in the order of the node's widgets; a seed is followed by its control_after_generate."""
    values, kind = [], node["class_type"]
    after = CORE[kind].after if kind in CORE else {}
    for key, type_ in kinds_of(kind).items():
        if is_socket(type_):
            continue
        values += [node["inputs"][key], *(["fixed"] if key == "seed" else after.get(key, []))]
    return values


def _note(node_id: int, text: str, box: Box, order: int) -> dict:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "title": "How To Use It",
        "pos": [box.x, box.y],
        "size": [box.width, box.height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
    }


def _group(number: int, group, box: Box) -> dict:
    bounds = [box.x, box.y, box.width, box.height]
    return {"id": number, "title": group.title, "bounding": bounds, "color": group.colour, "font_size": 24, "flags": {}}


def _routes(layout: Layout, links: list[list]) -> dict:
    """The points that links go through to pass no node, as the editor saves them."""
    reroutes: list[dict] = []
    ends: list[dict] = []
    for link, source, number, target, entry, kind in links:
        parent = None
        for x, y in route(layout, (str(source), number), (str(target), entry), kind):
            reroutes.append({"id": len(reroutes) + 1, "pos": [x, y], "linkIds": [link]})
            if parent is not None:
                reroutes[-1]["parentId"] = parent
            parent = len(reroutes)
        if parent is not None:
            ends.append({"id": link, "parentId": parent})
    return {"reroutes": reroutes, "linkExtensions": ends} if reroutes else {}


if __name__ == "__main__":
    for name in sys.argv[1:] or templates():
        editor_file, api_file = files(name)
        editor_file.write_text(text(name), encoding="utf-8")
        api_file.write_text(api_text(name), encoding="utf-8")
        for title, made in apps().items():
            if made.template == name:
                (FOLDER / f"{title}.json").write_text(app_text(title), encoding="utf-8")
