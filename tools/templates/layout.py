"""Where a template's nodes, groups and links lie: two rows of groups, and links that pass no node."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from .source import NOTE, Group, Template

GAP = 90
"""Pixels between columns; half of it is free on each side of a link that runs up or down there."""

TITLE = 30
"""The height of a node's title, above its position."""

PADDING, HEADING, BETWEEN = 16, 44, 26
"""Around the nodes of a group, above them, and between two of them; all in pixels."""

CORRIDOR = 88
"""Between the two rows; links that pass nodes run there."""

SIZES = {
    "SanaLoadPipeline": (264, 204),
    "SanaLoadTransformer": (320, 166),
    "SanaLoadTextEncoder": (320, 166),
    "SanaLoadVAE": (320, 118),
    "SanaLoadLora": (300, 136),
    "SanaLoadControlNet": (270, 150),
    "SanaEncodePrompt": (276, 245),
    "SanaEncodeVideoPrompt": (330, 298),
    "SanaEmptyLatent": (260, 150),
    "SanaEmptyVideoLatent": (260, 180),
    "SanaImageToVideoLatent": (280, 200),
    "SanaCropToSize": (250, 116),
    "SanaSketch": (320, 446),
    "SanaSCMSample": (280, 372),
    "SanaFlowSample": (290, 310),
    "SanaSaveVideo": (260, 192),
    "SanaLongVideoSave": (280, 408),
    "SanaSaveVideoState": (280, 116),
    "SanaPromptSchedule": (290, 136),
    "SanaSelectFrames": (260, 150),
    "VAEEncode": (220, 84),
    "VAEDecode": (220, 84),
    "VAEDecodeTiled": (280, 160),
    "ImageBatch": (260, 84),
    "SaveImage": (260, 304),
    "PreviewImage": (260, 280),
    "LoadImage": (260, 4),
    "SolidMask": (230, 130),
    "MaskComposite": (230, 175),
    "SetLatentNoiseMask": (260, 84),
    "ImageCompositeMasked": (250, 200),
    "ControlNetApplyAdvanced": (300, 230),
    "EasyCache": (300, 180),
    "TorchCompileModel": (300, 90),
    NOTE: (270, 160),
}
"""Width and height of each class: what both renderings need once there is a result, as a test measures in the editor.

Load Image is collapsed. A note is at least so high, and as high as its text.
"""

VIDEOS, RESULT = ("SanaSaveVideo", "SanaLongVideoSave"), 42
"""Nodes that show a video as wide as themselves, and the pixels around it."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; of a node without its title."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass
class Layout:
    """Boxes of nodes by id, of groups in the template's order and of their titles; the height of the corridor."""

    nodes: dict[str, Box] = field(default_factory=dict)
    groups: list[Box] = field(default_factory=list)
    titles: dict[str, Box] = field(default_factory=dict)
    corridor: float = 0.0


def class_of(template: Template, node_id: str) -> str:
    return NOTE if node_id == NOTE else {**template.graph, **template.own}[node_id]["class_type"]


def arrange(template: Template) -> Layout:
    """A place for every node that a group holds."""
    columns = _columns(template)
    flat = [group for group in template.groups if not group.both]
    heights = [max(_height(template, group) for group in flat if group.row == row) for row in (0, 1)]
    whole = max(sum(heights) + HEADING + PADDING + CORRIDOR, *(_height(template, each) for each in template.groups))
    heights[1] = whole - heights[0] - HEADING - PADDING - CORRIDOR
    tops = (0.0, heights[0] + HEADING + PADDING + CORRIDOR)
    found = Layout()
    for group in template.groups:
        height = whole if group.both else heights[group.row]
        found.groups.append(_place(template, group, columns, tops[group.row], height, found.nodes))
    found.titles = _titles(template, found.groups)
    found.corridor = tops[1] - CORRIDOR / 2
    return found


def _columns(template: Template) -> dict[int, tuple[float, float]]:
    """Left edge and width of each column."""
    widths: dict[int, float] = {}
    for group in template.groups:
        for column, ids in group.columns.items():
            widest = max(SIZES[class_of(template, i)][0] for i in ids)
            widths[column] = max(widths.get(column, 0), widest)
    found, x = {}, 0.0
    for column in sorted(widths):
        found[column] = (x, widths[column])
        x += widths[column] + GAP
    return found


def _height(template: Template, group: Group) -> float:
    """The height of a group's nodes, with their titles."""
    return max(_stack(template, ids) for ids in group.columns.values())


def _needed(template: Template, node_id: str) -> float:
    """The height of a node, without its title."""
    width, height = SIZES[class_of(template, node_id)]
    if node_id == NOTE:
        paragraphs = re.sub(r"\]\([^)]*\)", "", template.note).split("\n")
        return max(height, 24 + sum(15 * math.ceil(6.2 * len(each) / (width - 24)) + 10 for each in paragraphs if each))
    return height + (RESULT + (width - 28) * _ratio(template) if class_of(template, node_id) in VIDEOS else 0)


def _ratio(template: Template) -> float:
    """Height by width of a template's videos."""
    sizes = (each["inputs"] for each in template.graph.values() if "frames" in each["inputs"])
    return next(each.get("height", 480) / each.get("width", 832) for each in sizes)


def _stack(template: Template, ids: tuple[str, ...]) -> float:
    heights = [_needed(template, i) + TITLE for i in ids]
    return sum(heights) + BETWEEN * (len(ids) - 1)


def _place(template, group: Group, columns, top: float, height: float, nodes: dict[str, Box]) -> Box:
    """Put a group's nodes into ``nodes``; its own box."""
    for column, ids in group.columns.items():
        x, width = columns[column]
        y = top + HEADING
        for i in ids:
            own: float = _needed(template, i)
            if i == ids[-1] and (i == NOTE or len(group.columns) == 1 and _grows(template, i)):
                own = top + HEADING + height - y - TITLE  # the last one fills the group
            nodes[i] = Box(x, y + TITLE, width, own)
            y += TITLE + own + BETWEEN
    left, right = columns[min(group.columns)][0], sum(columns[max(group.columns)])
    return Box(left - PADDING, top, right - left + 2 * PADDING, height + HEADING + PADDING)


def _grows(template: Template, node_id: str) -> bool:
    """Whether a node has use for more height: it shows an image or a video."""
    return class_of(template, node_id) in ("SaveImage", "PreviewImage", "SanaSaveVideo")


Point = tuple[float, float]


def socket(box: Box, number: int, output: bool) -> Point:
    """Where a node's input or output is, by its number."""
    return (box.right if output else box.x, box.y + 14 + 20 * number)


def crossed(points: list[Point], boxes: dict[str, Box]) -> set[str]:
    """The nodes that a link through points passes behind."""
    return {
        name
        for start, end in zip(points, points[1:])
        for x, y in _curve(start, end, 80 if len(points) > 2 else None)
        for name, box in boxes.items()
        if box.x - 4 < x < box.right + 4 and box.y - TITLE - 2 < y < box.bottom + 4
    }


def _curve(start: Point, end: Point, most: float | None, count: int = 60) -> list[Point]:
    """Points on the editor's link: a cubic curve that leaves and arrives level; ``most`` limits how far it swings."""
    reach = 0.25 * ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    reach = reach if most is None else min(most, reach)
    found = []
    for i in range(count + 1):
        t = i / count
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        x = a * start[0] + b * (start[0] + reach) + c * (end[0] - reach) + d * end[0]
        found.append((x, a * start[1] + b * start[1] + c * end[1] + d * end[1]))
    return found


def route(layout: Layout, source: tuple[str, int], target: tuple[str, int], kind: str) -> list[Point]:
    """The points that a link goes through between its ends: none where it passes no node, else a corridor's ends.

    ``source``, ``target``: a node and the number of its output or input; ``kind``: the link's type. ValueError where
    every way passes a node.
    """
    above, below = layout.nodes[source[0]], layout.nodes[target[0]]
    start, end = socket(above, source[1], True), socket(below, target[1], False)
    levels = _levels(layout, above, below, kind)
    ways = [[(start[0] + inward, level), (end[0] - inward, level)] for level in levels for inward in (30, 42, 54, 18)]
    boxes = {**layout.nodes, source[0]: _inner(above, -12), target[0]: _inner(below, 12), **layout.titles}
    for way in ([], *ways):
        if not crossed([start, *way, end], boxes):
            return way
    raise ValueError(f"no free way from {source} to {target}: it passes {sorted(crossed([start, end], boxes))}")


def _titles(template: Template, boxes: list[Box]) -> dict[str, Box]:
    """What the groups' titles cover, at about 12 pixels a letter."""
    pairs = enumerate(zip(template.groups, boxes))
    return {f"title {i}": Box(box.x, box.y + TITLE + 2, 12 * len(group.title), 0) for i, (group, box) in pairs}


LANES = {"MODEL": -22, "CLIP": -11, "VAE": 0, "CONDITIONING": 11, "LATENT": 22, "IMAGE": 33, "MASK": -33}
"""Where links of a type run in a corridor: pixels below its middle."""


def _levels(layout: Layout, above: Box, below: Box, kind: str) -> list[float]:
    """Where a link may run level, the best first: between two nodes of one column, in the corridor, above all."""
    beneath = above.x == below.x and 0 < below.y - above.bottom < 2 * (TITLE + BETWEEN)
    near = [above.bottom + BETWEEN / 2] if beneath else []
    lane = LANES.get(kind, 0)
    return [*near, layout.corridor + lane, -46 + lane / 2, *(layout.corridor + other for other in LANES.values())]


def _inner(box: Box, shift: float) -> Box:
    """A box without the edge where its link begins or ends."""
    return Box(max(box.x, box.x + shift), box.y, box.width - abs(shift), box.height)
