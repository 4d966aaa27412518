"""How deep the JSON that a file or a person gives may be nested: what checks, copies and prints it is recursive.

Python's own reader stops at 1000 levels up to 3.12, and only at 10,000 from 3.13.
"""

from __future__ import annotations

DEEPEST = 100


def is_shallow(value: object) -> bool:
    """Whether objects and lists are nested at most DEEPEST deep."""
    level = [value]
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item)]
    return not level


def _children(value: object):
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
