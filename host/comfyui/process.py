"""A ComfyUI inside this process: its own start-up, its own executor, no listening port."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ALIASES = {"diffusion_models": ("unet", "diffusion_models"), "text_encoders": ("text_encoders", "clip")}
"""Where ComfyUI looks for a kind of model, in its order, if not only in the folder of the kind's name."""

LONGEST_MESSAGE = 500
"""Characters of one of ComfyUI's errors that are told; it repeats the value that it refuses, however long."""

PAUSE = 0.05
"""Seconds between two looks at what ComfyUI reports."""


GRACE = 10
"""Seconds that an interrupted run has to end."""


class NodeFailed(RuntimeError):
    """A node raised inside ComfyUI: which one, what the canvas calls it, and why."""


@dataclass
class Outcome:
    """What a run saved and what it only previewed, by node id."""

    saved: dict[str, list[str]] = field(default_factory=dict)
    previews: dict[str, list[str]] = field(default_factory=dict)


def start(comfyui: Path, pack: Path, arguments: list[str]):
    """Start ComfyUI from a checkout with its command-line ``arguments``, with our pack among its nodes."""
    sys.path.insert(0, str(comfyui))
    usual, sys.argv = sys.argv, ["main.py", *arguments]
    try:
        import main
    finally:
        sys.argv = usual
    loop, server, _ = main.start_comfyui()
    import nodes

    if "SanaSCMSample" not in nodes.NODE_CLASS_MAPPINGS:
        loop.run_until_complete(nodes.load_custom_node(str(pack)))
    return loop, server


def add_models(folder: Path) -> None:
    """Let ComfyUI look for models below ``folder`` first."""
    import folder_paths

    for kind in list(folder_paths.folder_names_and_paths):
        for name in reversed(ALIASES.get(kind, (kind,))):
            if (folder / name).is_dir():
                folder_paths.add_model_folder_path(kind, str(folder / name), is_default=True)


def known_classes() -> dict[str, type]:
    """ComfyUI's node classes by name."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS


def _display_name(class_type: str) -> str:
    import nodes

    return nodes.NODE_DISPLAY_NAME_MAPPINGS.get(class_type) or class_type


def check(loop, graph: Mapping) -> list[str]:
    """ComfyUI's own validation; the ids of output nodes, or ValueError with a line for each thing that is wrong.

    ComfyUI itself would run the outputs that are valid and drop the others.
    """
    import execution

    _remember(graph)
    valid, error, outputs, node_errors = loop.run_until_complete(
        execution.validate_prompt(str(uuid.uuid4()), graph, None)
    )
    problems = list(dict.fromkeys(_node_problems(node_errors)))
    if not valid and not problems:
        problems = [": ".join(filter(None, (error.get("message"), error.get("details"))))]
    if problems := problems or _dropped(graph, outputs):
        raise ValueError("\n".join(problems))
    return outputs


def _remember(graph: Mapping) -> None:
    """Note a graph for the nodes' checks: those of the pack as ComfyUI imported it, under another name than ours."""
    package = known_classes()["SanaSCMSample"].__module__.rpartition(".nodes.")[0]
    importlib.import_module(f"{package}.host.before_run").remember(graph)


def _dropped(graph: Mapping, outputs: list[str]) -> list[str]:
    """Output nodes that ComfyUI would leave out without a word: before 0.33 one that is linked to itself."""
    kinds = {node_id: node["class_type"] for node_id, node in graph.items() if node_id not in outputs}
    return [
        f"node {node_id} ({_display_name(kind)}) cannot run: is it linked to itself?"
        for node_id, kind in kinds.items()
        if getattr(known_classes()[kind], "OUTPUT_NODE", False)
    ]


def _node_problems(node_errors: Mapping) -> Iterator[str]:
    for node_id, found in (node_errors or {}).items():
        where = f"node {node_id} ({_display_name(found['class_type'])})"
        yield from (f"{where}: {_message(problem)}"[:LONGEST_MESSAGE] for problem in found["errors"])


def _message(problem: Mapping) -> str:
    """One of ComfyUI's errors for a person. A node's own check is told once and not for each input that it sees."""
    details = problem["details"]
    if problem.get("type") == "custom_validation_failed":
        return details.partition(" - ")[2] or problem["message"]
    if problem.get("type", "").startswith("exception"):
        return f"it cannot be checked: {details or problem['message']}"
    return f"{details}: {problem['message']}" if details else problem["message"]


def run(loop, server, graph: Mapping, outputs: list[str], started: Callable[[str, str], None] | None = None) -> Outcome:
    """Queue a validated graph and wait for its end; ``started(node id, name)`` is called as each node begins."""
    prompt_id, client = str(uuid.uuid4()), uuid.uuid4().hex
    # (number, id, graph, extra_data, outputs); ComfyUI 0.8 added a sixth, what it must not log
    server.prompt_queue.put((0, prompt_id, graph, {"client_id": client}, outputs, {}))
    try:
        while not (history := server.prompt_queue.get_history(prompt_id=prompt_id)):
            _report_started(loop, server, graph, started)
    except KeyboardInterrupt:
        _interrupt(server, prompt_id)
        raise
    _report_started(loop, server, graph, started)
    entry = history[prompt_id]
    for event, data in entry["status"]["messages"]:
        if event in ("execution_error", "execution_interrupted"):
            reason = data.get("exception_message", "").strip() or "it was interrupted"
            raise NodeFailed(f"node {data['node_id']} ({_display_name(data['node_type'])}): {reason}")
    kinds = ("output", "temp")
    return Outcome(*({node: _paths(shown, kind) for node, shown in entry["outputs"].items()} for kind in kinds))


def _report_started(loop, server, graph: Mapping, started: Callable[[str, str], None] | None) -> None:
    """Read the messages that ComfyUI has for its editor; no socket is open that would take them."""
    loop.run_until_complete(asyncio.sleep(PAUSE))
    while not server.messages.empty():
        event, data, *_ = server.messages.get_nowait()
        node_id = data.get("node") if event == "executing" and isinstance(data, Mapping) else None
        if started and isinstance(node_id, str) and node_id in graph:
            started(node_id, _display_name(graph[node_id]["class_type"]))


def _interrupt(server, prompt_id: str) -> None:
    """Stop a run, and wait a little for its node to notice, so that no file stays half written."""
    import nodes

    nodes.interrupt_processing()
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and not server.prompt_queue.get_history(prompt_id=prompt_id):
        time.sleep(PAUSE)


def _paths(output: Mapping, kind: str) -> list[str]:
    """The files of a kind (output, temp) that a node showed."""
    import folder_paths

    found = []
    for items in output.values():
        for item in items if isinstance(items, (list, tuple)) else ():
            if isinstance(item, Mapping) and item.get("type") == kind:
                folder = folder_paths.get_directory_by_type(kind)
                found.append(os.path.join(folder, item.get("subfolder", ""), item["filename"]))  # noqa: PTH118
    return found
