"""Models at a URL: those that a workflow names are copied to this machine, each once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..host.embedded.folders import SUBFOLDERS
from ..model_loaders.files.folders import LOADERS
from .urls import Url

TOKENIZERS = ("tokenizer", "tokenizer.json", "tokenizer_config.json")
"""What lies next to a text encoder."""


def cache_folder() -> Path:
    """Where copies are kept: SANA_NODES_CACHE, else a folder of the person's cache."""
    return Path(os.environ.get("SANA_NODES_CACHE", Path.home() / ".cache" / "sana-nodes"))


class Copies:
    """A models folder at a URL, and the folder of this machine that has what was asked for of it."""

    def __init__(self, url: Url):
        self.url = url
        self.folder = cache_folder() / "models" / hashlib.sha256(url.text.encode()).hexdigest()[:12]
        self._done: set[tuple[str, str]] = set()

    def fetch(self, nodes: Mapping[str, Mapping]) -> None:
        """Copy the models that loaders among these nodes name. One that is not there is left for the check to say."""
        for folder, name in _named(nodes):
            if (folder, name) not in self._done:
                self._copy(f"{folder}/{name}")
                self._done.add((folder, name))

    def _copy(self, name: str) -> None:
        """A file, or all files of a folder; those that are here with their size are not copied again."""
        source = self.url.child(name)
        size = source.size()
        found = {"": size} if size is not None else source.files(deep=True)
        for rest, size in found.items():
            path = self.folder / name / rest if rest else self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                (source.child(rest) if rest else source).get(path)


def _named(nodes: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
    for node in nodes.values():
        key, kinds = LOADERS.get(node["class_type"], ("", ()))
        name = node["inputs"].get(key)
        if isinstance(name, str) and name and ".." not in name.split("/"):
            more = TOKENIZERS if "text_encoders" in kinds else ()
            for folder in (folder for kind in kinds for folder in SUBFOLDERS.get(kind, (kind,))):
                yield from ((folder, each) for each in (name, *more))
