"""Write ComfyUI's locale files from the node classes: ``python -m sana_nodes.tools.locales``."""

from __future__ import annotations

import json
from pathlib import Path

from .. import NODE_CLASS_MAPPINGS

FILE = Path(__file__).resolve().parent.parent / "locales" / "en" / "nodeDefs.json"


def definitions() -> dict:
    """nodeDefs.json: each node's name, description, inputs and outputs with tooltips."""
    return {name: _definition(cls) for name, cls in NODE_CLASS_MAPPINGS.items()}


def _definition(cls) -> dict:
    declared = cls.INPUT_TYPES()
    inputs = {**declared["required"], **declared.get("optional", {})}
    names = getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)
    return {
        "display_name": cls.DISPLAY_NAME,
        "description": cls.DESCRIPTION,
        "inputs": {key: {"name": key, "tooltip": spec[1]["tooltip"]} for key, spec in inputs.items()},
        "outputs": {
            str(i): {"name": name, "tooltip": tip} for i, (name, tip) in enumerate(zip(names, cls.OUTPUT_TOOLTIPS))
        },
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(definitions(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
