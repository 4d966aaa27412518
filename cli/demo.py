"""``sana-nodes demo``: the shipped workflows on the shipped demo weights."""

from __future__ import annotations

import argparse

from .calls import EXAMPLES, PACK
from .run import run_embedded
from .workflows import read_workflow

MODELS = PACK / "demo" / "models"
IMAGE = (EXAMPLES / "sana_sprint_text_to_image.json", "text", "a red ring on the left of a blue background")
VIDEO = (EXAMPLES / "sana_video_text_to_video.json", "prompt", "a red ring moving right on a blue background")
"""Workflow, the input that is the prompt, and the prompt where none is given."""


def demo_command(options: argparse.Namespace) -> int:
    """Generate an image, or with ``video`` a video; returns the exit code."""
    workflow, key, usual = VIDEO if options.video else IMAGE
    graph = read_workflow(workflow)
    next(node for node in graph.values() if key in node["inputs"])["inputs"][key] = options.prompt or usual
    fixed: dict = {"models": MODELS, "input": None, "set": [], "no_metadata": False, "json": False}
    return run_embedded(graph, argparse.Namespace(output=options.output, **fixed))
