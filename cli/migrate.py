"""``sana-nodes migrate``: a saved graph of the older Sana packs into ours, in either format; positions stay."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model_loaders.files.whole import written_whole
from ..tools.templates.source import display_name, is_socket, kinds_of, node, outputs_of
from .calls import BadCall
from .older_packs import KSAMPLER, PASSED, RULES, UNKNOWN, New, sprint_sampler

Source = tuple[str, int]
"""A node's id, and the number of its output."""


@dataclass
class Node:
    """A node of either format: ``values`` of its widgets and ``sources`` of its inputs, by name; ``raw``: as saved."""

    class_type: str
    values: dict[str, Any]
    sources: dict[str, Source]
    raw: dict
    new: New | None = None


def migrate(graph: dict) -> tuple[dict, list[str]]:
    """A graph in the editor's or API format with our nodes in place of older ones, and lines for a person.

    BadCall for what is neither format.
    """
    in_editor = isinstance(graph.get("nodes"), list)
    try:
        nodes = dict(_editor_nodes(graph) if in_editor else _api_nodes(graph))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadCall(f"the file is not a workflow ({type(error).__name__}: {error})") from error
    lines = [line for key, one in nodes.items() for line in _translate(key, one, nodes)]
    _pass_on(nodes)
    return (_editor(graph, nodes) if in_editor else _api(nodes)), lines


def _editor_nodes(graph: dict) -> Iterator[tuple[str, Node]]:
    links = {link[0]: (str(link[1]), int(link[2])) for link in graph.get("links") or []}
    for raw in graph["nodes"]:
        names = _widgets_of(raw["type"])
        saved = raw.get("widgets_values") or []
        values = dict(zip(names, saved)) if isinstance(saved, list) else dict(saved)
        given = {entry["name"]: links[entry["link"]] for entry in raw.get("inputs") or [] if entry.get("link") in links}
        yield str(raw["id"]), Node(raw["type"], values, given, raw)


def _api_nodes(graph: dict) -> Iterator[tuple[str, Node]]:
    for key, raw in graph.items():
        inputs = raw["inputs"]
        given = {name: (str(v[0]), int(v[1])) for name, v in inputs.items() if isinstance(v, list)}
        yield key, Node(raw["class_type"], {n: v for n, v in inputs.items() if n not in given}, given, raw)


def _widgets_of(class_type: str) -> list[str]:
    if class_type == "KSampler":
        return KSAMPLER
    return (RULES.get(class_type) or PASSED.get(class_type) or ([],))[0]


def _translate(key: str, one: Node, nodes: dict[str, Node]) -> Iterator[str]:
    """Set what a node becomes; lines about it."""
    where = f"node {key} ({one.raw.get('title') or one.class_type})"
    if one.class_type in UNKNOWN:
        yield f"{where}: left as it is; put {UNKNOWN[one.class_type]} in its place"
    elif one.class_type in PASSED:
        yield f"{where}: left out, it is not needed"
    elif one.class_type == "KSampler" and _is_sprint(one, nodes):
        one.new = sprint_sampler(one.values)
        _guide(one, nodes)
    elif one.class_type in RULES:
        one.new = RULES[one.class_type][1](one.values)
    if one.new is not None:
        yield f"{where}: now {display_name(one.new.class_type)}"
        yield from (f"{where}: {note}" for note in one.new.notes)


def _is_sprint(sampler: Node, nodes: dict[str, Node]) -> bool:
    """Whether a KSampler samples SANA-Sprint: by its sampler's name, or by the model above it."""
    if sampler.values.get("sampler_name") == "scm":
        return True
    key = sampler.sources.get("model", ("", 0))[0]
    seen: set[str] = set()
    while key in nodes and key not in seen:
        seen.add(key)
        if nodes[key].class_type == "SanaCheckpointLoader":
            return "sprint" in str(nodes[key].values).lower()
        key = nodes[key].sources.get("model", ("", 0))[0]
    return False


def _guide(sampler: Node, nodes: dict[str, Node]) -> None:
    """The guidance scale of SANA-Sprint, which was cfg or ScmModelSampling's, goes to its prompt."""
    above = nodes.get(sampler.sources.get("model", ("", 0))[0])
    scale = (above.values if above and above.class_type == "ScmModelSampling" else sampler.values).get("cfg_scale")
    scale = sampler.values.get("cfg", 4.5) if scale is None else scale
    prompt = nodes.get(sampler.sources.get("positive", ("", 0))[0])
    if prompt is not None and prompt.class_type in ("SanaTextEncode", "GemmaTextEncode"):
        prompt.values["guidance_scale"] = scale
        prompt.new = RULES[prompt.class_type][1](prompt.values)
        assert prompt.new is not None
        prompt.new.values["guidance_scale"] = scale


def _pass_on(nodes: dict[str, Node]) -> None:
    """Connect what came through nodes that are left out, and remove them."""

    def origin(source: Source) -> Source | None:
        seen: set[str] = set()
        while (one := nodes.get(source[0])) and one.class_type in PASSED and source[0] not in seen:
            seen.add(source[0])
            if (above := one.sources.get(PASSED[one.class_type][1])) is None:
                return None
            source = above
        return source

    for one in nodes.values():
        one.sources = {name: found for name, source in one.sources.items() if (found := origin(source))}
    for key in [key for key, one in nodes.items() if one.class_type in PASSED]:
        del nodes[key]


def _made(one: Node) -> dict:
    """A translated node in API format."""
    assert one.new is not None
    links = {new: one.sources[old] for old, new in one.new.links.items() if old in one.sources}
    return node(one.new.class_type, one.raw.get("title"), **{**one.new.values, **links})


def _api(nodes: dict[str, Node]) -> dict:
    found = {}
    for key, one in nodes.items():
        sources = {name: list(source) for name, source in one.sources.items()}
        found[key] = _made(one) if one.new else {**one.raw, "inputs": {**one.values, **sources}}
    return found


def _editor(graph: dict, nodes: dict[str, Node]) -> dict:
    links: list[list] = []
    saved = [_saved(one, links) for one in nodes.values()]
    by_id = {str(one["id"]): one for one in saved}
    for one in saved:
        for output in one.get("outputs") or []:
            output["links"] = []
    for number, source, output, *_ in links:
        outputs = by_id.get(str(source), {}).get("outputs") or []
        if output < len(outputs):
            outputs[output]["links"].append(number)
    extra = {k: v for k, v in (graph.get("extra") or {}).items() if k not in ("reroutes", "linkExtensions")}
    return {**graph, "nodes": saved, "links": links, "last_link_id": len(links), "extra": extra}


def _saved_id(key: str) -> int | str:
    return int(key) if key.lstrip("-").isdigit() else key


def _saved(one: Node, links: list[list]) -> dict:
    """A node as the editor saves it; its links are numbered and added to ``links``."""
    raw = json.loads(json.dumps(one.raw))
    sources = one.sources
    if one.new is not None:
        raw |= _shape(one)
        sources = {new: one.sources[old] for old, new in one.new.links.items() if old in one.sources}
    for index, entry in enumerate(raw.get("inputs") or []):
        entry["link"] = None
        if entry["name"] in sources:
            entry["link"] = len(links) + 1
            source, number = sources[entry["name"]]
            links.append([entry["link"], _saved_id(source), number, raw["id"], index, entry["type"]])
    return raw


def _shape(one: Node) -> dict:
    """What changes in a saved node that becomes another class: type, inputs, outputs and values."""
    assert one.new is not None
    made, kinds = _made(one), kinds_of(one.new.class_type)
    types, names = outputs_of(one.new.class_type)
    linked = {new for old, new in one.new.links.items() if old in one.sources}
    control = one.values.get("control_after_generate", "fixed")
    inputs: list[dict] = []
    values: list = []
    for name, kind in kinds.items():
        if is_socket(kind) or name in linked:
            inputs.append({"name": name, "type": kind, **({} if is_socket(kind) else {"widget": {"name": name}})})
        if not is_socket(kind):
            value = made["inputs"][name]
            values += [node(one.new.class_type)["inputs"][name] if name in linked else value]
            values += [control] if name == "seed" else []
    return {
        "type": one.new.class_type,
        "inputs": inputs,
        "outputs": [{"name": name, "type": kind, "slot_index": i} for i, (name, kind) in enumerate(zip(names, types))],
        "properties": {"Node name for S&R": one.new.class_type},
        "widgets_values": values,
    }


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all. BadCall where it cannot be."""
    try:
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadCall(f"cannot write {path}: {error.strerror}") from error


def migrate_command(options: argparse.Namespace) -> int:
    """Write the translated workflow; lines about it go to standard error. BadCall for a file that is no workflow."""
    try:
        graph = json.loads(options.workflow.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadCall(f"cannot read {options.workflow}: {error}") from error
    if not isinstance(graph, dict) or not graph:
        raise BadCall(f"{options.workflow} is not a workflow")
    made, lines = migrate(graph)
    output: Path = options.output or options.workflow.with_name(f"{options.workflow.stem}-sana-nodes.json")
    if output.exists() and output.samefile(options.workflow):
        raise BadCall("give another file as --output: the workflow itself is kept")
    _write(output, json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    sys.stderr.write("".join(f"{line}\n" for line in lines or ["nothing in it is an older pack's"]))
    print(output)
    return 0
