"""The command line: sana-nodes run | models | get | demo."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent
DEMO_MODELS = PACK / "demo" / "models"
EXAMPLES = PACK / "example_workflows" / "api"
DEMO = (EXAMPLES / "sana_sprint_text_to_image.json", "text", "a red ring on the left of a blue background")
VIDEO_DEMO = (EXAMPLES / "sana_video_text_to_video.json", "prompt", "a red ring moving right on a blue background")
"""Workflow, the input that is the prompt, and the prompt where none is given."""


class BadCall(ValueError):
    """A command line or workflow that cannot be used: exit code 2."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 when a node failed, 2 for an unusable call or workflow."""
    given = _parser().parse_args(arguments)
    if given.command is not get_command:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return given.command(given)
    except BadCall as error:
        print(f"sana-nodes: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sana-nodes", description="Run SANA workflows from the command line.")
    commands = parser.add_subparsers(required=True, metavar="run | models | get | demo")
    run = commands.add_parser("run", help="run an API-format workflow to its end")
    run.add_argument("workflow", type=Path, metavar="WORKFLOW.json")
    run.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="NODE: a node's id or title"
    )
    run.add_argument("--models", type=Path, metavar="DIR", help="models folder (default: ./models, or ComfyUI's)")
    run.add_argument("--input", type=Path, metavar="DIR", help="input folder (default: ./input, or ComfyUI's)")
    run.add_argument("--output", type=Path, metavar="DIR", help="output folder (default: ./output, or ComfyUI's)")
    run.add_argument("--host", choices=("auto", "comfyui", "embedded"), default="auto")
    run.add_argument("--json", action="store_true", help="print one JSON object instead of a line per file")
    run.set_defaults(command=run_command)
    models = commands.add_parser("models", help="what is found where, and what each example workflow lacks")
    models.add_argument("--models", type=Path, metavar="DIR")
    models.set_defaults(command=models_command)
    get = commands.add_parser("get", help="download a published model into the models folder")
    get.add_argument("name", nargs="?", metavar="NAME", help="without it, the names are listed")
    get.add_argument("--to", type=Path, metavar="DIR", help="models folder (default: ./models, or ComfyUI's)")
    get.set_defaults(command=get_command)
    demo = commands.add_parser("demo", help="draw with the small demo weights that come with the pack")
    demo.add_argument("prompt", nargs="?", metavar="PROMPT")
    demo.add_argument("--video", action="store_true", help="a video with SANA-Video")
    demo.add_argument("--output", type=Path, default=Path("output"), metavar="DIR")
    demo.set_defaults(command=demo_command)
    return parser


def read_workflow(path: Path) -> dict:
    """An API-format graph from a file; BadCall says how to make one of anything else."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCall(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadCall(f"{path} is not JSON: {error}") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise BadCall(
            f"{path} is a workflow in the editor's format; in ComfyUI choose Workflow > Export (API) "
            "and give the file that it saves"
        )
    if isinstance(graph, dict) and isinstance(graph.get("prompt"), dict):
        graph = graph["prompt"]
    if not isinstance(graph, dict) or not all(isinstance(node, dict) for node in graph.values()):
        raise BadCall(f"{path} is not a workflow: an object of nodes in API format was expected")
    return graph


def apply_settings(graph: dict, settings: list[str]) -> None:
    """Apply ``NODE.INPUT=VALUE`` texts to a graph in place; NODE is an id or a title."""
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, key = target.rpartition(".")
        if not equals or not dot or not name or not key:
            raise BadCall(f"--set {setting!r} is not of the form NODE.INPUT=VALUE")
        inputs = graph[_node_called(graph, name)].setdefault("inputs", {})
        inputs[key] = text if isinstance(inputs.get(key), str) else _value(text)


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _node_called(graph: dict, name: str) -> str:
    if name in graph:
        return name
    titled = [i for i, node in graph.items() if node.get("_meta", {}).get("title", node.get("class_type")) == name]
    if len(titled) == 1:
        return titled[0]
    if titled:
        raise BadCall(f"--set {name}: the nodes {', '.join(titled)} all have this title; use an id")
    known = ", ".join(
        f"{i} ({node.get('_meta', {}).get('title', node.get('class_type'))})" for i, node in graph.items()
    )
    raise BadCall(f"--set {name}: no node has this id or title; the workflow has {known}")


def find_comfyui() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names or that this folder is installed in; BadCall for a wrong COMFYUI_PATH."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not _is_comfyui(Path(named)):
            raise BadCall(f"COMFYUI_PATH is {named}, which holds no ComfyUI (no main.py and comfy/)")
        return Path(named)
    around = PACK.parent.parent
    return around if PACK.parent.name == "custom_nodes" and _is_comfyui(around) else None


def _is_comfyui(folder: Path) -> bool:
    return (folder / "comfy").is_dir() and (folder / "main.py").is_file()


def run_command(given: argparse.Namespace) -> int:
    graph = read_workflow(given.workflow)
    apply_settings(graph, given.set)
    for name in ("models", "input"):
        folder = getattr(given, name)
        if folder is not None and not folder.is_dir():
            raise BadCall(f"--{name} {folder} is not a folder")
    comfyui = find_comfyui() if given.host != "embedded" else None
    if given.host == "comfyui" and comfyui is None:
        raise BadCall("no ComfyUI found: set COMFYUI_PATH to a ComfyUI folder, or use --host embedded")
    run = _run_in_comfyui if comfyui else _run_embedded
    return run(graph, given, comfyui)


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


def _failed(error: Exception) -> int:
    print(f"sana-nodes: {error}", file=sys.stderr)
    return 1


def _run_embedded(graph: dict, given: argparse.Namespace, _=None) -> int:
    from . import NODE_CLASS_MAPPINGS, host
    from .host.embedded import graph as executor
    from .host.embedded import progress

    progress.shown = True
    folders = host.use("embedded").folders
    folders.models = [given.models] if given.models else folders.models
    folders.input, folders.output = given.input or folders.input, given.output or folders.output
    try:
        outcome = executor.run(graph, NODE_CLASS_MAPPINGS, folders, _announce(graph))
    except executor.BadWorkflow as error:
        raise BadCall(str(error)) from error
    except executor.NodeFailed as error:
        return _failed(error)
    return _report(outcome.saved, given.json)


def _run_in_comfyui(graph: dict, given: argparse.Namespace, comfyui: Path) -> int:
    from .host.comfyui import process

    kept = sys.stdout
    sys.stdout = sys.stderr
    try:
        loop, server = process.start(comfyui, PACK, _comfyui_arguments(given))
        if given.models:
            process.add_models(given.models.resolve())
        try:
            outputs = process.check(loop, graph)
        except ValueError as error:
            raise BadCall(str(error)) from error
        outcome = process.run(server, graph, outputs, _announce(graph))
    except process.NodeFailed as error:
        return _failed(error)
    finally:
        sys.stdout = kept
    return _report(outcome.saved, given.json)


def _comfyui_arguments(given: argparse.Namespace) -> list[str]:
    import torch

    arguments = [] if torch.cuda.is_available() or torch.backends.mps.is_available() else ["--cpu"]
    for name in ("input", "output"):
        folder = getattr(given, name)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            arguments += [f"--{name}-directory", str(folder.resolve())]
    return arguments


def demo_command(given: argparse.Namespace) -> int:
    workflow, key, usual = VIDEO_DEMO if given.video else DEMO
    graph = read_workflow(workflow)
    next(node for node in graph.values() if key in node["inputs"])["inputs"][key] = given.prompt or usual
    return _run_embedded(graph, argparse.Namespace(models=DEMO_MODELS, input=None, output=given.output, json=False))


def models_command(given: argparse.Namespace) -> int:
    from .inventory import report

    print("\n".join(report([given.models] if given.models else None, find_comfyui(), EXAMPLES)))
    return 0


def get_command(given: argparse.Namespace) -> int:
    from . import published

    rows = {row.name: row for row in published.published()}
    if given.name is None:
        width = max(map(len, rows))
        print("\n".join(f"{name:{width}}  {row.what} ({row.repository})" for name, row in rows.items()))
        return 0
    if given.name not in rows:
        raise BadCall(f"no published model is called {given.name!r}; choose one of {', '.join(rows)}")
    comfyui = None if given.to else find_comfyui()
    models = given.to or (comfyui / "models" if comfyui else Path("models"))
    try:
        print(published.get(rows[given.name], models))
    except published.CannotGet as error:
        return _failed(error)
    return 0
