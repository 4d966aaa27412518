"""A table of graphs about files, values and the shape of graphs, and a program that runs it inside ComfyUI.

    python tests/support/same_graphs.py COMFYUI HOME RESULTS

runs each graph through the real executor of a ComfyUI over the base directory HOME and saves what happened.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import image_files
import torch
from PIL import Image

KEPT: list[dict] = []
"""What each Keep node was given, in the order in which they ran."""


class Keep:
    """An output node of the tests' own, for both hosts: it remembers what it is given."""

    RETURN_TYPES = ("IMAGE", "INT")
    FUNCTION = "keep"
    OUTPUT_NODE = True
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"name": ("STRING", {})},
            "optional": {
                "image": ("IMAGE",),
                "mask": ("MASK",),
                "whole": ("INT", {"default": 0, "min": -10, "max": 4096}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "real": ("FLOAT", {"default": 0.0, "min": -1.0, "max": 100.0}),
                "free": ("FLOAT", {"default": 0.0}),
                "text": ("STRING", {"default": ""}),
                "flag": ("BOOLEAN", {"default": False}),
                "choice": (["first", "second"], {}),
                "checked": ("INT", {"default": 0, "min": 0, "max": 5}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, checked=None):
        return "checked is above 9" if checked is not None and checked > 9 else True

    def keep(self, image=None, whole=0, **given):
        KEPT.append({"image": image, "whole": whole, **given})
        return (image, whole)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def loaded(name: str) -> dict:
    """A file through both of core's loaders, each channel."""
    graph = {"1": node("LoadImage", image=name), "2": node("TestKeep", name="a", image=["1", 0], mask=["1", 1])}
    for number, channel in enumerate(("alpha", "red", "green", "blue")):
        graph[f"3{number}"] = node("LoadImageMask", image=name, channel=channel)
        graph[f"4{number}"] = node("TestKeep", name=channel, mask=[f"3{number}", 0])
    return graph


VALUES = {
    "whole": [128.0, "64", "4.5", 4.7, -0.5, True, "0x10", " 7 ", "1_0", None, "", {}, {"__value__": 3}, [], [3]]
    + [5000, -11, 4096, 10**400, 1e400],
    "seed": [2**64 - 1, 2**64, -1, 2**53 + 1, str(2**60), 1e19],
    "real": ["4.5", 4, True, "1e2", None, "inf", 101, "abc", 10**400, -1.5, {"__value__": "2"}],
    "free": [1e308, "nan", "inf", 1e400],
    "text": [2024, 1.5, True, None, {"a": 1}, {"__value__": ["x", 1]}, "", "1984", ["x", "y", "z"], "ä\ud800"],
    "flag": [0, 1, "false", "true", "", None, {"__value__": []}, 0.0],
    "choice": ["first", "third", 1, None, True, {"__value__": "second"}, "First"],
    "checked": [5, 7, "6", 10, -3],
    "image": [None, 5],
    "other": [5, None, {"a": [1]}],
}
"""Values of Keep's inputs; ``other`` is none of them."""


def valued() -> dict[str, dict]:
    return {
        f"{key} {number}: {str(value)[:20]}": {"1": node("TestKeep", name="x", **{key: copy.deepcopy(value)})}
        for key, values in VALUES.items()
        for number, value in enumerate(values)
    }


def batches() -> dict[str, dict]:
    """Core's image nodes over images of different sizes, channels and counts."""

    def two(class_type: str, first: str, second: str, names: tuple[str, str], **inputs) -> dict:
        links = {names[0]: ["1", 0], names[1]: ["2", 0]}
        return {
            "1": node("LoadImage", image=first),
            "2": node("LoadImage", image=second),
            "3": node("LoadImageMask", image="rgba.png", channel="alpha"),
            "4": node(class_type, **links, **inputs),
            "5": node("TestKeep", name="x", image=["4", 0]),
        }

    found = {}
    for first, second in (("rgb.png", "small.png"), ("small.png", "rgb.png"), ("tall.png", "rgb.png")):
        found[f"batch {first} {second}"] = two("ImageBatch", first, second, ("image1", "image2"))
    masked = {"mask": ["3", 0]}
    for first, second, inputs in (
        ("rgb.png", "small.png", {"x": 5, "y": 7}),
        ("rgb.png", "small.png", {"x": 50, "y": 30, **masked}),
        ("rgb.png", "small.png", {"x": 4000, "y": 0}),
        ("small.png", "rgb.png", {"x": 0, "y": 0, **masked}),
        ("small.png", "rgb.png", {"x": 3, "y": 2, "resize_source": True, **masked}),
        ("anim.png", "small.png", {"x": 1, "y": 1, **masked}),
        ("small.png", "anim.png", {"x": 1, "y": 1}),
    ):
        inputs = {"resize_source": False, **inputs}
        names = ("destination", "source")
        found[f"composite {first} {second} {len(found)}"] = two("ImageCompositeMasked", first, second, names, **inputs)
    return found


def shapes() -> dict[str, dict]:
    """Graphs whose shape is the question."""
    image = node("LoadImage", image="rgb.png")
    keep = node("TestKeep", name="x", image=["1", 0])
    good = {"1": image, "2": keep}
    wrong = node("TestKeep", name="y", whole=9999)

    def linked(*value) -> dict:
        return {**good, "3": node("TestKeep", name="z", whole=list(value))}

    return {
        "two outputs, one wrong": {**good, "3": wrong},
        "two outputs, both wrong": {"1": wrong, "2": node("TestKeep", name="y")},
        "unneeded and wrong": {**good, "3": node("SanaSelectFrames", images=["1", 0], start="x")},
        "unneeded, of no source": {**good, "3": node("SanaSelectFrames", images=["9", 0], start=0, count=0, stride=1)},
        "unneeded circle": {**good, "3": node("VAEDecode", samples=["3", 0])},
        "missing input": {**good, "3": node("TestKeep", whole=3)},
        "twins run once": {**good, "3": copy.deepcopy(image), "4": node("TestKeep", name="x", image=["3", 0])},
        "a twin with another value": {**good, "3": node("TestKeep", name="other", image=["1", 0])},
        "a link": linked("2", 1),
        "output -1": linked("2", -1),
        "output true": linked("2", True),
        "output -3": linked("2", -3),
        "output 2": linked("2", 2),
        "output 1.0": linked("2", 1.0),
        "output '1'": linked("2", "1"),
        "output of another kind": linked("2", 0),
        "source that is a number": linked(2, 1),
        "link of one": linked("2"),
        "link of three": linked("2", 1, 1),
        "link to itself": linked("3", 1),
        "link to nothing": linked("77", 0),
        "circle of two": {
            "1": node("TestKeep", name="a", whole=["2", 1]),
            "2": node("TestKeep", name="b", whole=["1", 1]),
        },
        "link to an unknown input": {
            **good,
            "3": node("SanaSelectFrames", images=["1", 0], start=0, count=0, stride=1, other=["1", 0]),
            "4": node("TestKeep", name="z", image=["3", 0]),
        },
        "no output": {"1": image},
        "unknown class": {**good, "3": node("NoSuchNode")},
        "missing image": {"1": node("LoadImage", image="none.png"), "2": keep},
        "image that is a number": {"1": node("LoadImage", image=5), "2": keep},
        "saved through": {
            "1": image,
            "2": node("SaveImage", images=["1", 0], filename_prefix="a/b_%year%%width%x%height%"),
            "3": node("SaveImage", images=["1", 0], filename_prefix="no_%batch_num%_%month%%day%"),
            "4": node("PreviewImage", images=["1", 0]),
            "5": node("SanaSaveFrames", images=["1", 0], format="png", filename_prefix="f_%width%x%height%"),
            "6": node("SaveImage", images=["1", 0], filename_prefix=2024, other=1),
        },
        "saved of an animation": {
            "1": node("LoadImage", image="anim.png"),
            "2": node("SaveImage", images=["1", 0], filename_prefix="c_%batch_num%_%width%"),
        },
        "saved from rgba": {
            "1": node("LoadImage", image="rgba.png"),
            "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
        },
        "chain of 100": chain(100),
        "chain of 2000": chain(2000),
    }


def chain(length: int) -> dict[str, dict]:
    """Keep nodes that hand one number on."""
    return {
        str(i): node("TestKeep", name=str(i), whole=[str(i - 1), 1] if i else 5, text="end" if i == length - 1 else "")
        for i in range(length)
    }


NAMES = (
    *("rgba.png [input]", "kept.png [output]", "kept.png [temp]", "clipspace/clip.png [input]", "sub/in.png"),
    *("sub/../rgba.png", "rgba.png[input]", "../secret.png", "../input/rgba.png", "/etc/hostname", "", "sub"),
    *("a\0b.png", "x" * 300),
)
"""Names of files in LoadImage."""

LINKED = ("outward.png", "disk/rgba.png")
"""Links in the input folder that lead out of it: to a file, and a subfolder on what could be a second disk."""

FILES = {f"file {name}": loaded(name) for name in image_files.MAKERS}
GRAPHS = {
    **FILES,
    **{f"name {name[:20]!r}": loaded(name) for name in NAMES},
    **{f"linked {name}": loaded(name) for name in LINKED},
    **valued(),
    **batches(),
    **shapes(),
}

STRICTER = {
    "free 1: nan": "an infinite or undefined number makes an image of nothing",
    "free 2: inf": "the same",
    "free 3: inf": "the same",
    "image 1: 5": "a node that takes an image fails on it",
}
"""What ComfyUI runs and the embedded host refuses on purpose."""

LOOSER = {
    "chain of 2000": "ComfyUI checks nodes recursively",
    "linked outward.png": "ComfyUI 0.33 refuses links that lead out of its folder, older ones do not",
    "linked disk/rgba.png": "the same",
}
"""What the embedded host runs and a ComfyUI may refuse."""


def prepare(home: Path) -> None:
    """The folders and files that the graphs name, below a base directory as ComfyUI has it."""
    for name in ("models", "input", "output", "custom_nodes", "user", "temp"):
        (home / name).mkdir(parents=True, exist_ok=True)
    image_files.make(home / "input")
    for folder, name in (("output", "kept.png"), ("temp", "kept.png"), ("input/clipspace", "clip.png")):
        (home / folder).mkdir(exist_ok=True)
        (home / folder / name).write_bytes((home / "input" / "rgba.png").read_bytes())

    disk = home.parent / "disk"
    image_files.make(disk)
    for link, target in (("outward.png", disk / "rgba.png"), ("disk", disk)):
        if not (home / "input" / link).is_symlink():
            (home / "input" / link).symlink_to(target, target_is_directory=target.is_dir())


def happened(run: Callable[[dict], object], refusals: tuple, failures: tuple, graph: dict, output: Path) -> dict:
    """What a run of a graph came to: ran, refused or failed; what was kept; the files and the tags in them."""
    KEPT.clear()
    before = set(output.rglob("*.png"))
    try:
        run(copy.deepcopy(graph))
        status, message = "ran", ""
    except refusals as error:
        status, message = "refused", str(error)
    except failures as error:
        status, message = "failed", str(error)
    files = {}
    for path in sorted(set(output.rglob("*.png")) - before):
        with Image.open(path) as opened:
            tags = {name: _told(text) for name, text in opened.text.items()}
            files[path.relative_to(output).as_posix()] = opened.tobytes(), opened.mode, tags
    return {"status": status, "message": message, "kept": list(KEPT), "files": files}


def _told(text: str) -> dict:
    """A tag's graph without what ComfyUI's cache adds to a node."""
    graph = json.loads(text)
    for one in graph.values():
        one.pop("is_changed", None)
    return graph


def main(comfyui: Path, home: Path, results: Path) -> None:
    from sana_nodes.cli.calls import PACK
    from sana_nodes.host.comfyui import process

    prepare(home)
    arguments = ["--cpu", "--base-directory", str(home), "--disable-all-custom-nodes", "--disable-api-nodes"]
    loop, server = process.start(comfyui, PACK, arguments)
    import nodes

    nodes.NODE_CLASS_MAPPINGS["TestKeep"] = Keep
    prepare(home)  # ComfyUI empties its temp folder when it starts

    def run(graph: dict) -> None:
        process.run(loop, server, graph, process.check(loop, graph))

    refusals, failures, found = (ValueError,), (process.NodeFailed,), {}
    for name, graph in GRAPHS.items():
        # one executor remembers from graph to graph what a node gave; another name makes it run again
        found[name] = happened(run, refusals, failures, renamed(graph, name), home / "output")
    torch.save(found, results)


def renamed(graph: dict, name: str) -> dict:
    graph = copy.deepcopy(graph)
    for one in graph.values():
        if one["class_type"] == "TestKeep" and "name" in one["inputs"]:
            one["inputs"]["name"] = f"{name}: {one['inputs']['name']}"
    return graph


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    sys.stdout.flush()
    os._exit(0)  # ComfyUI's threads wait for a server that never ran
