"""A progress bar on standard error, for as long as somebody asked for one."""

from __future__ import annotations

import sys

shown = False


def bar(total: int, what: str):
    """A context manager whose ``update()`` counts one of ``total`` steps."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, file=sys.stderr, disable=not shown)
