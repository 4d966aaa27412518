"""Tensors that were computed from weights and are kept on disk for the next start; without them a run is slower."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

logger = logging.getLogger(__name__)

MOST = 4
"""Files in a folder; those that were used longest ago are removed."""


class KeptTensors:
    """A folder of safetensors files by key; a key is a hash. No method raises for what is wrong with the disk."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def load(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a key; None if there is none, or it is damaged."""
        from safetensors.torch import load_file

        path = self._path(key)
        try:
            found = load_file(path)
            os.utime(path)
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        return found

    def save(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep tensors under a key, in a step that other processes see whole or not at all."""
        from safetensors.torch import save_file

        part: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".part", dir=self.folder)
            os.close(handle)
            part = Path(name)
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, part)
            part.replace(self._path(key))
            self._remove_oldest()
        except (OSError, SafetensorError) as error:
            logger.warning("%s keeps nothing for the next start: %s", self.folder, error)
            if part is not None:
                with suppress(OSError):
                    part.unlink()

    def _remove_oldest(self) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MOST]:
            file.unlink(missing_ok=True)
