"""A table of rows through one workflow: complete, without repeats, and resumed after any end.

from sana_nodes import batch

for row in batch.run("workflow.json", "prompts.csv", output="images"):
    print(row["key"], row["files"], row["error"])
"""

from __future__ import annotations

__all__ = ["run"]


def __getattr__(name: str):
    """``run``, imported when it is asked for: the command line's help needs none of it."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .driver import run

    return run
