"""Write the editor-format workflows from the API-format ones: ``python -m sana_nodes.tools.workflows NAME …``.

Nodes are laid out in columns; a node's column is the length of the longest path to it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from .. import NODE_CLASS_MAPPINGS

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
COLUMN, ROW = 480, 430
CORE = {
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"]),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "ImageBatch": ({"image1": "IMAGE", "image2": "IMAGE"}, ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE"}, []),
}
"""The core nodes in the examples: their inputs from other nodes, and their outputs."""


def is_link(value) -> bool:
    return isinstance(value, list)


def signature(class_type: str) -> tuple[dict, list[str], list[str]]:
    """Types of the inputs, types of the outputs, and names of the outputs."""
    if class_type in CORE:
        inputs, outputs = CORE[class_type]
        return inputs, outputs, outputs
    cls = NODE_CLASS_MAPPINGS[class_type]
    declared = cls.INPUT_TYPES()
    specs = {**declared["required"], **declared.get("optional", {})}
    kinds = {key: spec[0] if isinstance(spec[0], str) else "COMBO" for key, spec in specs.items()}
    return kinds, list(cls.RETURN_TYPES), list(getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES))


def widgets(node: dict) -> list:
    """Values in the order of the node's widgets; a seed is followed by its control_after_generate."""
    values = []
    for key in signature(node["class_type"])[0]:
        value = node["inputs"].get(key)
        if value is None or is_link(value):
            continue
        values += [value, "fixed"] if key == "seed" else [value]
    return values


def editor(graph: dict, note: str) -> dict:
    """The editor's form of an API graph, with a note for the person who opens it."""
    columns = {node_id: _column(graph, node_id) for node_id in graph}
    ordered = sorted(graph, key=columns.__getitem__)
    links: list[list] = []
    nodes: list[dict] = []
    height: Counter[int] = Counter()
    for order, node_id in enumerate(ordered):
        inputs = _inputs(graph, node_id, links)
        index = [40 + columns[node_id] * COLUMN, 60 + height[columns[node_id]] * ROW]
        height[columns[node_id]] += 1
        nodes.append(_node(node_id, graph[node_id], order, index, inputs))
    by_id = {node["id"]: node for node in nodes}
    for link, source, number, *_ in links:
        by_id[source]["outputs"][number]["links"].append(link)
    last = max(by_id) + 1
    counts = {"last_node_id": last, "last_link_id": len(links)}
    nodes.append(_note(last, note, max(height.values())))
    return {**counts, "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def _column(graph: dict, node_id: str) -> int:
    """The length of the longest way to a node."""
    sources = [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)]
    return 1 + max((_column(graph, source) for source in sources), default=-1)


def _inputs(graph: dict, node_id: str, links: list[list]) -> list[dict]:
    """A node's sockets; the links into them are numbered on and added to ``links``."""
    given, kinds = graph[node_id]["inputs"], signature(graph[node_id]["class_type"])[0]
    inputs: list[dict] = []
    for key in kinds:
        if not is_link(given.get(key)) and not (kinds[key].isupper() and _socket(kinds[key])):
            continue
        link = None
        if is_link(given.get(key)):
            source, number = given[key]
            link = len(links) + 1
            links.append([link, int(source), number, int(node_id), len(inputs), kinds[key]])
        inputs.append({"name": key, "type": kinds[key], "link": link})
    return inputs


def _node(node_id: str, node: dict, order: int, index: list[int], inputs: list[dict]) -> dict:
    _, outputs, names = signature(node["class_type"])
    return {
        "id": int(node_id),
        "type": node["class_type"],
        "title": node["_meta"]["title"],
        "pos": index,
        "size": [420, 90 + 26 * (len(inputs) + len(widgets(node)))],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": [
            {"name": name, "type": kind, "slot_index": i, "links": []}
            for i, (name, kind) in enumerate(zip(names, outputs))
        ],
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": widgets(node),
    }


def _socket(kind: str) -> bool:
    return kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def _note(node_id: int, text: str, rows: int) -> dict:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": [40, 80 + rows * ROW],
        "size": [640, 200],
        "flags": {},
        "order": node_id,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
    }


PUBLISHED = (
    "With the published weights choose SANA-Video in the loader, 832 × 480 (720p: 1280 × 704) and 81 frames, 50 steps, "
    "cfg 6 and 16 frames per second."
)
LONG = (
    "Get the weights with `sana-nodes get longsana-480p`. The video is sampled, decoded and saved block by block, "
    "so that its length takes no memory."
)
NOTES = {
    "sana_sprint_image_to_image": (
        "# Image to image\n\nThe upper row generates a first image; replace it by Load Image to start from your own "
        "image. strength sets how much the second image differs from it. It is low here, because the demo weights "
        "change an image suddenly. With the published weights choose your pipeline, 1024 × 1024 and about 0.6. Use the "
        "same seed and steps in Sana Image To Image Latent and Sana SCM Sample."
    ),
    "sana_video_text_to_video": (
        f"# Text to video\n\nThis workflow uses the demo weights, which know only moving shapes. {PUBLISHED}"
    ),
    "sana_video_image_to_video": (
        "# Image to video\n\nSANA-Sprint generates the first frame and SANA-Video animates it. Replace the upper row "
        f"by Load Image to start from your own image. {PUBLISHED}"
    ),
    "sana_video_continue": (
        "# Continue a video\n\nThe last frame of the first clip is the first frame of the second. Repeat the lower row "
        f"to add more clips. {PUBLISHED}"
    ),
    "longsana_minute": (
        f"# A minute from one prompt\n\n{LONG} Cancel the run at any time: the blocks so far stay as a file."
    ),
    "longsana_story": (
        f"# A story of five prompts\n\n{LONG} Each Sana Prompt Schedule adds a prompt that begins at a time."
    ),
    "longsana_continue": (
        f"# Continue a clip\n\n{LONG} The second file follows the first without a seam. To continue on another day, "
        "replace the upper row by Sana Load Video State."
    ),
}


def text(name: str) -> str:
    """The file of an example in the editor's format, made from its API-format twin."""
    graph = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return json.dumps(editor(graph, NOTES[name]), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or NOTES:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")
