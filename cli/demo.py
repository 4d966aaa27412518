"""``sana-nodes demo``: the shipped workflows on the shipped demo weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from .calls import EXAMPLES, PACK, BadCall
from .run import run_embedded
from .workflows import read_workflow

MODELS = PACK / "demo" / "models"
IMAGE = (EXAMPLES / "sana_sprint_text_to_image.json", "text", "a red ring on the left of a blue background")
VIDEO = (EXAMPLES / "sana_video_text_to_video.json", "prompt", "a red ring moving right on a blue background")
"""Workflow, the input that is the prompt, and the prompt where none is given."""

STORY = EXAMPLES / "longsana_short_story.json"
THEN = ">"
"""Between the prompts of a long video."""


def demo_command(options: argparse.Namespace) -> int:
    """Generate an image, with ``video`` a video, or with ``long`` a long one; returns the exit code."""
    graph = _story(options.prompt) if options.long else _scene(VIDEO if options.video else IMAGE, options.prompt)
    fixed: dict = {"models": MODELS, "input": None, "set": [], "no_metadata": False, "json": False}
    return run_embedded(graph, argparse.Namespace(output=options.output, **fixed))


def _scene(example: tuple[Path, str, str], prompt: str | None) -> dict[str, dict]:
    workflow, key, usual = example
    graph = read_workflow(workflow)
    next(node for node in graph.values() if key in node["inputs"])["inputs"][key] = prompt or usual
    return graph


def _story(prompts: str | None) -> dict[str, dict]:
    """The workflow of a long video with other prompts, of which each lasts as long.

    BadCall for an empty one, and for more than there are blocks.
    """
    graph = read_workflow(STORY)
    if prompts is None:
        return graph
    texts = [text.strip() for text in prompts.split(THEN)]
    save = _first(graph, "SanaLongVideoSave")["inputs"]
    seconds, most = (save["frames"] - 1) / save["fps"], save["frames"] // (4 * save["block_frames"])
    if not all(texts) or len(texts) > most:
        raise BadCall(
            f"the prompts are {prompts!r}; give 1 to {most}, with {THEN} between them, such as "
            f'"a red ring moving right on a blue background {THEN} a red ring moving up on a blue background"'
        )
    encoded, starts = (_first(graph, kind) for kind in ("SanaEncodeVideoPrompt", "SanaPromptSchedule"))
    kinds = encoded["class_type"], starts["class_type"]
    graph = {number: node for number, node in graph.items() if node["class_type"] not in kinds}
    for i, text in enumerate(texts):
        before = {"previous": [f"2{i - 1}", 0]} if i else {}
        given = {"conditioning": [f"1{i}", 0], "start": seconds * i / len(texts), **before}
        graph[f"1{i}"] = {**encoded, "inputs": {**encoded["inputs"], "prompt": text}}
        graph[f"2{i}"] = {**starts, "inputs": {**starts["inputs"], **given}}
    save["positive"] = [f"2{len(texts) - 1}", 0]
    return graph


def _first(graph: dict[str, dict], class_type: str) -> dict:
    return next(node for node in graph.values() if node["class_type"] == class_type)
