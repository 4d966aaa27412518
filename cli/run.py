"""``sana-nodes run``: a workflow in API format to its end, on either host."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .calls import PACK, BadCall, failure, find_comfyui
from .workflows import apply_settings, read_workflow


def run_command(options: argparse.Namespace) -> int:
    graph = read_workflow(options.workflow)
    apply_settings(graph, options.set)
    for name in ("models", "input"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            raise BadCall(f"--{name} {folder} is not a folder")
    comfyui = find_comfyui() if options.host != "embedded" else None
    if options.host == "comfyui" and comfyui is None:
        raise BadCall("no ComfyUI found: set COMFYUI_PATH to a ComfyUI folder, or use --host embedded")
    run = run_in_comfyui if comfyui else run_embedded
    return run(graph, options, comfyui)


def _announce(graph: dict):
    def started(node_id: str, *_):
        print(f"node {node_id} ({graph[node_id]['class_type']})", file=sys.stderr, flush=True)

    return started


def _report(saved: dict[str, list[str]], as_json: bool) -> int:
    files = {node_id: paths for node_id, paths in saved.items() if paths}
    if as_json:
        print(json.dumps({"saved": [path for paths in files.values() for path in paths], "nodes": files}))
    else:
        for paths in files.values():
            print("\n".join(paths))
    return 0


def run_embedded(graph: dict, options: argparse.Namespace, _=None) -> int:
    from .. import NODE_CLASS_MAPPINGS, host
    from ..host.embedded import graph as executor
    from ..host.embedded import progress

    progress.shown = True
    folders = host.use("embedded").folders
    folders.models = [options.models] if options.models else folders.models
    folders.input, folders.output = options.input or folders.input, options.output or folders.output
    try:
        outcome = executor.run(graph, NODE_CLASS_MAPPINGS, folders, _announce(graph))
    except executor.BadWorkflow as error:
        raise BadCall(str(error)) from error
    except executor.NodeFailed as error:
        return failure(error)
    return _report(outcome.saved, options.json)


def run_in_comfyui(graph: dict, options: argparse.Namespace, comfyui: Path) -> int:
    from ..host.comfyui import process

    kept = sys.stdout
    sys.stdout = sys.stderr
    try:
        loop, server = process.start(comfyui, PACK, _comfyui_arguments(options))
        if options.models:
            process.add_models(options.models.resolve())
        try:
            outputs = process.check(loop, graph)
        except ValueError as error:
            raise BadCall(str(error)) from error
        outcome = process.run(server, graph, outputs, _announce(graph))
    except process.NodeFailed as error:
        return failure(error)
    finally:
        sys.stdout = kept
    return _report(outcome.saved, options.json)


def _comfyui_arguments(options: argparse.Namespace) -> list[str]:
    import torch

    arguments = [] if torch.cuda.is_available() or torch.backends.mps.is_available() else ["--cpu"]
    for name in ("input", "output"):
        folder = getattr(options, name)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            arguments += [f"--{name}-directory", str(folder.resolve())]
    return arguments
