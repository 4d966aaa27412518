"""A workflow of core nodes alone, which takes a millisecond, with a place for a batch of it."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "back.png"}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "mark.png"}},
    "2": {
        "class_type": "ImageCompositeMasked",
        "inputs": {"destination": ["1", 0], "source": ["5", 0], "x": 0, "y": 0, "resize_source": False},
        "_meta": {"title": "Image Composite Masked"},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "Sana"}},
    "8": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 8, "height": 8}},
}
"""A white pixel at x, y on black; node 8 leads nowhere."""

SIDE = 32


class Place:
    """Folders, the workflow and tables below ``root``."""

    def __init__(self, root: Path):
        self.root, self.graph = root, json.loads(json.dumps(GRAPH))
        (root / "input").mkdir()
        Image.new("RGB", (SIDE, SIDE)).save(root / "input" / "back.png")
        Image.new("RGB", (1, 1), "white").save(root / "input" / "mark.png")
        self.workflow = root / "workflow.json"
        self.write_workflow()

    def write_workflow(self) -> None:
        self.workflow.write_text(json.dumps(self.graph))

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def folders(self) -> dict:
        return {"output": self.output, "input": self.root / "input"}

    def table(self, name: str, data: bytes) -> Path:
        (self.root / name).write_bytes(data)
        return self.root / name

    def arguments(self, table: Path) -> list[str]:
        return [str(self.workflow), str(table), "--output", str(self.output), "--input", str(self.root / "input")]

    def points(self, count: int) -> Path:
        """A csv of ``count`` rows, each with its own point."""
        lines = [f"p{i},{i % SIDE},{i // SIDE % SIDE}" for i in range(count)]
        return self.table("points.csv", "\n".join(["key,2.x,2.y", *lines, ""]).encode())

    def manifest(self) -> list[dict]:
        """The lines that are whole."""
        lines = (self.output / "manifest.jsonl").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def assert_complete(self, count: int) -> None:
        """Every row of ``points`` once, its file whole and its own, and nothing else in the output folder."""
        lines = self.manifest()
        assert [line["key"] for line in lines] == [f"p{i}" for i in range(count)]
        assert all(line["error"] is None for line in lines)
        expected = {f"p{i}.png" for i in range(count)} | {"manifest.jsonl", "manifest.parquet", ".sana-batch"}
        assert {path.name for path in self.output.iterdir()} <= expected
        assert [path.name for path in (self.output / ".sana-batch").iterdir()] == ["lock"]
        for i in range(count):
            with Image.open(self.output / f"p{i}.png") as image:
                assert image.getbbox() == (i % SIDE, i // SIDE % SIDE, i % SIDE + 1, i // SIDE % SIDE + 1)
