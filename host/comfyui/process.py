"""A ComfyUI inside this process: its own start-up, its own executor, no listening port."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


class NodeFailed(RuntimeError):
    """A node raised inside ComfyUI: which one, of which class, and what it messages."""


@dataclass
class Outcome:
    """What a run saved, by node id."""

    saved: dict[str, list[str]] = field(default_factory=dict)


def start(comfyui: Path, pack: Path, arguments: list[str]):
    """Start ComfyUI from a checkout with its command-line ``arguments``, with our pack among its nodes."""
    sys.path.insert(0, str(comfyui))
    given, sys.argv = sys.argv, ["main.py", *arguments]
    try:
        import main
    finally:
        sys.argv = given
    loop, server, _ = main.start_comfyui()
    import nodes

    if "SanaSCMSample" not in nodes.NODE_CLASS_MAPPINGS:
        loop.run_until_complete(nodes.load_custom_node(str(pack)))
    return loop, server


def add_models(folder: Path) -> None:
    """Let ComfyUI look for models below ``folder`` first."""
    import folder_paths

    for kind in list(folder_paths.folder_names_and_paths):
        if (folder / kind).is_dir():
            folder_paths.add_model_folder_path(kind, str(folder / kind), is_default=True)


def check(loop, graph: Mapping) -> list[str]:
    """ComfyUI's own validation; the ids of output nodes, or ValueError with everything it messages."""
    import execution

    valid, error, outputs, node_errors = loop.run_until_complete(
        execution.validate_prompt(str(uuid.uuid4()), graph, None)
    )
    if not valid:
        messages = [error.get("message", ""), error.get("details", "")]
        for node_id, problem in node_errors.items():
            for one in problem["errors"]:
                messages.append(f"node {node_id} ({problem['class_type']}): {one['message']}: {one['details']}")
        raise ValueError("; ".join(part for part in messages if part))
    return outputs


def run(server, graph: Mapping, outputs: list[str], started: Callable[[str], None] | None = None) -> Outcome:
    """Queue a validated graph and wait for its end."""
    prompt_id = str(uuid.uuid4())
    # (number, id, graph, extra_data, outputs); ComfyUI 0.8 added a sixth, what it must not log
    server.prompt_queue.put((0, prompt_id, graph, {"client_id": None}, outputs, {}))
    before = None
    while not (history := server.prompt_queue.get_history(prompt_id=prompt_id)):
        node_id = getattr(server, "last_node_id", None)
        if started and node_id and node_id != before:
            started(node_id)
            before = node_id
        time.sleep(0.05)
    entry = history[prompt_id]
    for event, data in entry["status"]["messages"]:
        if event == "execution_error":
            raise NodeFailed(f"node {data['node_id']} ({data['node_type']}): {data['exception_message'].strip()}")
        if event == "execution_interrupted":
            raise NodeFailed(f"node {data['node_id']} ({data['node_type']}) was interrupted")
    return Outcome({node_id: _paths(output) for node_id, output in entry["outputs"].items()})


def _paths(output: Mapping) -> list[str]:
    import folder_paths

    found = []
    for items in output.values():
        for item in items if isinstance(items, (list, tuple)) else ():
            if isinstance(item, Mapping) and item.get("type") == "output":
                folder = folder_paths.get_directory_by_type(item["type"])
                found.append(os.path.join(folder, item.get("subfolder", ""), item["filename"]))  # noqa: PTH118
    return found
