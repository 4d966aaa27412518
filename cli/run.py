"""``sana-nodes run``: a workflow in API format to its end, on either host."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .calls import PACK, BadCall, check_output, failure, find_comfyui
from .workflows import apply_settings, declared_inputs, read_workflow


def run_command(options: argparse.Namespace) -> int:
    """Run ``options.workflow``; returns the exit code. BadCall for what cannot run, before anything does."""
    graph = read_workflow(options.workflow)
    for name in ("models", "input"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            raise BadCall(f"--{name} {folder} is not a folder")
    comfyui = find_comfyui() if options.host != "embedded" else None
    if options.host == "comfyui" and comfyui is None:
        raise BadCall("no ComfyUI found: set COMFYUI_PATH to a ComfyUI folder, or use --host embedded")
    if comfyui is None:
        return run_embedded(graph, options)
    return _run_in_comfyui(graph, options, comfyui)


def run_embedded(graph: dict, options: argparse.Namespace) -> int:
    """Run a graph without ComfyUI; ``options``: models, input, output, set, no_metadata and json of ``run``."""
    from .. import NODE_CLASS_MAPPINGS, host
    from ..host.embedded import graph as executor
    from ..host.embedded import progress

    progress.shown = True
    embedded: Any = host.use("embedded")
    folders = embedded.folders
    folders.models = [options.models] if options.models else folders.models
    folders.input, folders.output = options.input or folders.input, options.output or folders.output
    check_output(folders.output)
    if options.set:
        apply_settings(graph, options.set, declared_inputs(graph, executor.known_classes(NODE_CLASS_MAPPINGS)))
    try:
        outcome = executor.run(graph, NODE_CLASS_MAPPINGS, folders, _started, _noted, not options.no_metadata)
    except executor.BadWorkflow as error:
        raise BadCall(str(error)) from error
    except executor.NodeFailed as error:
        return failure(error)
    return _report(outcome.saved, outcome.previews, options.json)


def _run_in_comfyui(graph: dict, options: argparse.Namespace, comfyui: Path) -> int:
    from ..host.comfyui import process

    if options.output:
        check_output(options.output)
    output, sys.stdout = sys.stdout, sys.stderr
    try:
        loop, server = process.start(comfyui, PACK, _comfyui_arguments(options))
        if options.models:
            process.add_models(options.models.resolve())
        if options.set:
            apply_settings(graph, options.set, declared_inputs(graph, process.known_classes()))
        try:
            outputs = process.check(loop, graph)
        except ValueError as error:
            raise BadCall(str(error)) from error
        outcome = process.run(loop, server, graph, outputs, _started)
    except process.NodeFailed as error:
        return failure(error)
    finally:
        sys.stdout = output
    return _report(outcome.saved, outcome.previews, options.json)


def _comfyui_arguments(options: argparse.Namespace) -> list[str]:
    import torch

    arguments = [] if torch.cuda.is_available() or torch.backends.mps.is_available() else ["--cpu"]
    for name in ("input", "output"):
        folder = getattr(options, name)
        if folder is not None:
            arguments += [f"--{name}-directory", str(folder.resolve())]
    return [*arguments, "--disable-metadata"] if options.no_metadata else arguments


def _started(node_id: str, name: str) -> None:
    print(f"node {node_id} ({name})", file=sys.stderr, flush=True)


def _noted(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _report(saved: Mapping[str, list[str]], previews: Mapping[str, list[str]], as_json: bool) -> int:
    """Print the files, each once: what was saved, then what was only previewed."""
    files = {node_id: paths for node_id, paths in saved.items() if paths}
    lists = [list(dict.fromkeys(path for paths in found.values() for path in paths)) for found in (saved, previews)]
    if as_json:
        print(json.dumps({"saved": lists[0], "previews": lists[1], "nodes": files}))
    else:
        for path in [*lists[0], *lists[1]]:
            print(path)
    return 0
