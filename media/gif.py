"""Text in a GIF file (GIF89a, section 24)."""

from __future__ import annotations

from pathlib import Path

TRAILER = b";"


def finish(path: Path, texts: dict[str, str], milliseconds: int) -> None:
    """Add comment extensions, ``name:json`` each, before the end of a file."""
    with path.open("r+b") as file:
        end = max(file.seek(0, 2) - 1, 0)
        file.seek(end)
        if file.read(1) != TRAILER:
            raise ValueError("the gif file is not whole")
        file.seek(end)
        for name, text in texts.items():
            file.write(_comment(f"{name}:{text}".encode()))
        file.write(TRAILER)


def _comment(data: bytes) -> bytes:
    blocks = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
