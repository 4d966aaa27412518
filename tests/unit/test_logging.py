"""Every module logs by its own name: nothing of ours speaks through the root logger or changes it."""

from __future__ import annotations

import ast
import logging

import pytest
import tiny

ROOMS = ("nodes", "samplers", "networks", "model_loaders", "media", "host", "cli", "batch", "tools")
FILES = sorted(
    file for pattern in ("*.py", *(f"{room}/**/*.py" for room in ROOMS)) for file in tiny.REPOSITORY.glob(pattern)
)
ALLOWED = {"getLogger", "Logger", "LoggerAdapter", "Handler", "StreamHandler", "Formatter", "LogRecord"}
"""What may be taken from logging by its name, beside the levels; all the rest is the root logger's."""


def faults(source: str) -> list[str]:
    """What a module does with the root logger."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "logging":
            found += [f"line {node.lineno}: from logging import {alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "logging":
            if node.attr not in ALLOWED and not node.attr.isupper():
                found.append(f"line {node.lineno}: logging.{node.attr}")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("getLogger", "addFilter"):
            named = node.args and getattr(node.args[0], "value", None) not in ("", "root")
            if node.func.attr == "addFilter" or not named:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(tiny.REPOSITORY)))
def test_no_module_uses_the_root_logger(file):
    assert faults(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "logging.warning('x')",
        "logging.getLogger().info('x')",
        "logging.getLogger('root').info('x')",
        "logging.root.info('x')",
        "logging.basicConfig()",
        "logging.disable(30)",
        "from logging import info",
        "logger.addFilter(lambda record: False)",
    ],
)
def test_the_rule_sees_what_it_forbids(line):
    assert faults(f"import logging\n{line}\n")
    assert not faults("import logging\nlogger = logging.getLogger(__name__)\nlogger.setLevel(logging.INFO)\n")


def test_loading_leaves_the_root_logger_as_it_was(host, reference):
    """A filter that hides one line of ComfyUI's would hide those of every other pack too."""
    import drawing

    root, before = logging.getLogger(), state(logging.getLogger())
    drawing.call("SanaLoadPipeline", pipeline="tiny")
    assert state(root) == before


def state(logger: logging.Logger) -> tuple:
    return list(logger.filters), list(logger.handlers), logger.level, logger.disabled
