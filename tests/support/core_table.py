"""The tables of docs/core-nodes.md."""

from __future__ import annotations

import re

import tiny

TABLE = tiny.REPOSITORY / "docs" / "core-nodes.md"
FAMILIES = ("sprint", "image", "video")


def rows() -> dict[str, dict]:
    """The table's rows by node: what each family does, and the first ComfyUI that has the node."""
    found = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        names = re.findall(r"`([^`]+)`", cells[0])
        if not line.startswith("| `") or len(cells) != 5:
            continue
        since = re.search(r"\(since ([\d.]+)\)", cells[0])
        for name in names:
            assert name not in found, f"{name} has two rows"
            states = dict(zip(FAMILIES, cells[1:4], strict=True))
            found[name] = {**states, "since": since.group(1) if since else None, "said": cells[4]}
    return found
