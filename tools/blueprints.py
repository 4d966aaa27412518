"""Write the subgraph blueprints of tools/templates/parts.py: ``python -m sana_nodes.tools.blueprints``.

ComfyUI offers each file of ``subgraphs/`` in its node library as one node that can be opened.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .templates import templates
from .templates.layout import BETWEEN, GAP, SIZES, TITLE
from .templates.parts import blueprints
from .templates.source import Blueprint, is_link, is_socket, kinds_of, outputs_of
from .workflows import widgets

FOLDER = Path(__file__).resolve().parent.parent / "subgraphs"
ENTRY, EXIT = -10, -20
"""What links name as the node of a subgraph's inputs, and of its outputs."""

NAMES = uuid.UUID("4f1f3f6e-5a34-4a56-9d0d-6d0a54a8e1f2")
"""The name space of the blueprints' ids, which are the same each time they are written."""

Saved = dict[str, Any]
Graph = Mapping[str, dict]


def file(made: Blueprint) -> Path:
    return FOLDER / f"{made.title}.json"


def text(made: Blueprint) -> str:
    """A blueprint's file: a workflow of one node, and the subgraph that it stands for. One line: the page reads it."""
    inside = _subgraph(made, templates()[made.template].graph)
    outside = {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [_one_node(made, inside)], "links": []}
    whole = {**outside, "version": 0.4, "definitions": {"subgraphs": [inside]}}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")) + "\n"


def _id(*words: str) -> str:
    return str(uuid.uuid5(NAMES, "/".join(words)))


def _subgraph(made: Blueprint, graph: Graph) -> Saved:
    ids = [key for column in made.columns for key in column]
    links: list[Saved] = []
    boxes = _boxes(made, graph)
    nodes = [_node(key, graph[key], made, links, boxes[key]) for key in ids]
    inputs = [_input(made, graph, name, number) for number, name in enumerate(made.inputs)]
    outputs = [_output(made, graph, name, number, links) for number, name in enumerate(made.outputs)]
    by_id = {node["id"]: node for node in nodes}
    for link in links:
        if link["origin_id"] == ENTRY:
            inputs[link["origin_slot"]]["linkIds"].append(link["id"])
        else:
            by_id[link["origin_id"]]["outputs"][link["origin_slot"]]["links"].append(link["id"])
    right = max(x + width for x, _, width, _ in boxes.values())
    counts = {"lastGroupId": 0, "lastNodeId": max(by_id), "lastLinkId": len(links), "lastRerouteId": 0}
    return {
        "id": _id(made.title),
        "version": 1,
        "state": counts,
        "revision": 0,
        "config": {},
        "name": made.title,
        "inputNode": {"id": ENTRY, "bounding": [-260, 0, 130, 40 + 20 * len(inputs)]},
        "outputNode": {"id": EXIT, "bounding": [right + GAP, 0, 130, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": "Sana",
        "description": made.description,
    }


def _boxes(made: Blueprint, graph: Graph) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, width and height of each node."""
    found: dict[str, tuple[float, float, float, float]] = {}
    x = 0.0
    for column in made.columns:
        sizes = {key: SIZES[graph[key]["class_type"]] for key in column}
        width, y = max(each[0] for each in sizes.values()), 0.0
        for key, (_, height) in sizes.items():
            found[key] = (x, y, width, height)
            y += height + TITLE + BETWEEN
        x += width + GAP
    return found


def _type_of(made: Blueprint, graph: Graph, name: str) -> str:
    node, key = made.inputs[name]
    return kinds_of(graph[node]["class_type"])[key]


def _input(made: Blueprint, graph: Graph, name: str, number: int) -> Saved:
    saved = {"id": _id(made.title, "input", name), "name": name, "type": _type_of(made, graph, name)}
    return {**saved, "linkIds": [], "pos": [-150, 20 + 20 * number]}


def _output(made: Blueprint, graph: Graph, name: str, number: int, links: list[Saved]) -> Saved:
    node, slot = made.outputs[name]
    kind = outputs_of(graph[node]["class_type"])[0][slot]
    link = _link(links, (int(node), slot), (EXIT, number), kind)
    return {"id": _id(made.title, "output", name), "name": name, "type": kind, "linkIds": [link]}


def _link(links: list[Saved], origin: tuple[int, int], target: tuple[int, int], kind: str) -> int:
    """Add a link between two nodes' slots; its number."""
    saved = {"id": len(links) + 1, "origin_id": origin[0], "origin_slot": origin[1]}
    links.append({**saved, "target_id": target[0], "target_slot": target[1], "type": kind})
    return len(links)


def _node(key: str, node: dict, made: Blueprint, links: list[Saved], box) -> Saved:
    """A node of the subgraph; the links into it are added to ``links``."""
    kind = node["class_type"]
    types, names = outputs_of(kind)
    return {
        "id": int(key),
        "type": kind,
        "title": node["_meta"]["title"],
        "pos": list(box[:2]),
        "size": list(box[2:]),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": _node_inputs(key, node, made, links),
        "outputs": [{"name": n, "type": t, "slot_index": i, "links": []} for i, (n, t) in enumerate(zip(names, types))],
        "properties": {"Node name for S&R": kind},
        "widgets_values": widgets(node),
    }


def _node_inputs(key: str, node: dict, made: Blueprint, links: list[Saved]) -> list[Saved]:
    """A node's sockets, and the widgets that the blueprint shows."""
    shown = {target: number for number, target in enumerate(made.inputs.values())}
    found: list[Saved] = []
    for name, kind in kinds_of(node["class_type"]).items():
        given, target = node["inputs"].get(name), (int(key), len(found))
        link: int | None = None
        if (key, name) in shown:
            link = _link(links, (ENTRY, shown[key, name]), target, kind)
        elif is_link(given):
            link = _link(links, (int(given[0]), given[1]), target, kind)
        if link or is_socket(kind):
            found.append(_socket(name, kind, link))
    return found


def _socket(name: str, kind: str, link: int | None) -> Saved:
    """An input as the editor saves it; one that also has a widget says so."""
    saved = {"name": name, "type": kind, "link": link}
    return saved if is_socket(kind) else {**saved, "widget": {"name": name}}


def _one_node(made: Blueprint, inside: Saved) -> Saved:
    """The node that stands for the subgraph ``inside``."""
    kinds = {each["name"]: each["type"] for each in inside["inputs"]}
    shown = [list(target) for name, target in made.inputs.items() if not is_socket(kinds[name])]
    seeds = [[node, "control_after_generate"] for node, key in made.inputs.values() if key == "seed"]
    return {
        "id": 1,
        "type": inside["id"],
        "title": made.title,
        "pos": [0, 0],
        "size": [380, 170 + 28 * len(shown)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [_socket(name, kind, None) for name, kind in kinds.items()],
        "outputs": [{"name": each["name"], "type": each["type"], "links": []} for each in inside["outputs"]],
        "properties": {"proxyWidgets": [*shown, *seeds]},
        "widgets_values": [],
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for made in blueprints():
        file(made).write_text(text(made), encoding="utf-8")
