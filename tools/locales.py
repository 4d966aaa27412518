"""Write ComfyUI's locale files from the node classes: ``python -m sana_nodes.tools.locales``.

English is what the classes say. The other languages come from tools/translations: English text to its translation;
a text that has none is listed and stays English.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .. import NODE_CLASS_MAPPINGS

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "locales"
LANGUAGES = ("en", "zh", "ja", "ko")


def definitions(language: str = "en") -> dict:
    """nodeDefs.json: each node's name, description, inputs and outputs with tooltips."""
    table = translations(language)
    return _translated({name: _definition(cls) for name, cls in NODE_CLASS_MAPPINGS.items()}, table)


def translations(language: str) -> dict[str, str]:
    """English text to a language's; empty for English itself."""
    file = HERE / "translations" / f"{language}.json"
    return {} if language == "en" else json.loads(file.read_text(encoding="utf-8"))


def missing(language: str) -> list[str]:
    """Texts of the nodes that a language has no translation of; types in capitals need none."""
    table = translations(language)
    texts = dict.fromkeys(_texts({name: _definition(cls) for name, cls in NODE_CLASS_MAPPINGS.items()}))
    return [text for text in texts if language != "en" and text not in table and not text.isupper()]


def text(language: str) -> str:
    """The content of a language's nodeDefs.json."""
    return json.dumps(definitions(language), indent=2, ensure_ascii=False) + "\n"


def _texts(value) -> list[str]:
    return [value] if isinstance(value, str) else [each for child in value.values() for each in _texts(child)]


def _translated(value, table: dict[str, str]):
    if isinstance(value, str):
        return table.get(value, value)
    return {key: _translated(child, table) for key, child in value.items()}


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
    for language in LANGUAGES:
        (FOLDER / language / "nodeDefs.json").write_text(text(language), encoding="utf-8")
        for each in missing(language):
            sys.stderr.write(f"{language} lacks: {each}\n")
