"""The published models by short names, and how to get one: ``sana-nodes get NAME``.

huggingface_hub downloads, resumes within a file whose connection broke, and keeps whole files for the next call; it
compares sizes alone, so the weights are held here against the sha256 that the hub gives.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..model_loaders.published import Published, published
from .calls import BadCall, failure, find_comfyui, sha256_of

NEEDED = re.compile(r"\.(json|safetensors|model|txt|jinja)$")
WEIGHTS = re.compile(r"(?P<stem>.+?)(?:\.(?P<variant>[a-z]+\d+))?(?P<shard>-\d+-of-\d+)?\.safetensors$")
INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(?:\.(?P<variant>[a-z]+\d+))?\.json$")


class CannotGet(RuntimeError):
    """A download that failed, with the reason and what to do."""


def needed_files(names: Sequence[str], variant: str | None = None, folder: str | None = None) -> list[str]:
    """Which files of a repository to take: configs, tokenizers, and one precision of each model's weights.

    Where a folder holds weights in the ``variant`` only those are taken, else the plain ones.
    """
    names = [name for name in names if NEEDED.search(name) and (folder is None or name.startswith(f"{folder}/"))]
    kinds = {name: match for name in names if (match := INDEX.match(name) or WEIGHTS.match(name))}
    in_variant = {Path(name).parent for name, match in kinds.items() if variant and match["variant"] == variant}
    return [
        name
        for name in names
        if name not in kinds or kinds[name]["variant"] == (variant if Path(name).parent in in_variant else None)
    ]


def get(row: Published, models: Path) -> Path:
    """Download a published model into ``models``/kind/name, without the files that are there. Returns the folder.

    All files are of one commit. Weights that do not have the hub's sha256 are downloaded once more, and CannotGet
    names those that are still wrong.
    """
    from huggingface_hub import errors

    try:
        return _download(row, models / row.kind / row.name)
    except errors.GatedRepoError as error:
        raise CannotGet(
            f"{row.repository} is gated: accept its licence at https://huggingface.co/{row.repository}, "
            "then log in with: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CannotGet(f"{row.repository} is not there, or not for you: {_first_line(error)}") from error
    except CannotGet:
        raise
    except Exception as error:  # the HTTP library under huggingface_hub changes with its version
        raise CannotGet(
            f"{row.name} could not be downloaded from {row.repository} ({type(error).__name__}: {_first_line(error)}); "
            "files that have arrived are kept: run the same command again to resume"
        ) from error


def _download(row: Published, target: Path) -> Path:
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(row.repository, revision=row.revision, files_metadata=True)
    names = [file.rfilename for file in info.siblings]
    files = needed_files(names, row.variant, row.folder)
    if not any(name.endswith(".safetensors") for name in files):
        raise CannotGet(f"{row.repository} holds no safetensors weights any more (it holds {', '.join(names[:5])})")
    _download_files(row.repository, info.sha, files, target)
    sums = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.rfilename in files and file.lfs}
    for name in _damaged(target, sums):
        _download_again(row, name, info.sha, target, sums[name])
    return target


ATTEMPTS = 5
"""The number of attempts at a download whose connection breaks inside a file."""


def _download_files(repository: str, commit: str, files: list[str], target: Path) -> None:
    """snapshot_download that resumes: before huggingface_hub 1.0 it gives up where a connection breaks in a file."""
    import huggingface_hub
    from huggingface_hub import errors

    for attempt in range(1, ATTEMPTS + 1):
        try:
            huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=files, local_dir=target)
            break
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError):
            raise
        except OSError as error:
            if error.errno is not None or attempt == ATTEMPTS:  # an error of the disk has a number
                raise
    if missing := [name for name in files if not (target / name).is_file()]:  # without a server it only warns
        raise ConnectionError(f"{missing[0]} did not arrive")


def _download_again(row: Published, name: str, commit: str, target: Path, expected: str) -> None:
    """Replace a file that is not the hub's; CannotGet, and no file, where what arrives is not it either."""
    import huggingface_hub

    print(f"{target / name} does not have the sha256 that the hub gives: downloading it again", file=sys.stderr)
    (target / name).unlink()
    huggingface_hub.hf_hub_download(row.repository, name, revision=commit, local_dir=target, force_download=True)
    if _damaged(target, {name: expected}):
        (target / name).unlink()
        raise CannotGet(
            f"{name} arrived from {row.repository} with another sha256 than the hub gives and was deleted; "
            "run the same command again later"
        )


def _damaged(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """The files of a folder whose sha256 is not the one given."""
    return [name for name, expected in sums.items() if sha256_of(folder / name) != expected.lower()]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def get_command(options: argparse.Namespace) -> int:
    rows = {row.name: row for row in published()}
    if options.name is None:
        width = max(map(len, rows))
        print("\n".join(f"{name:{width}}  {row.what} ({row.repository})" for name, row in rows.items()))
        return 0
    if options.name not in rows:
        raise BadCall(f"no published model is called {options.name!r}; choose one of {', '.join(rows)}")
    comfyui = None if options.to else find_comfyui()
    models = options.to or (comfyui / "models" if comfyui else Path("models"))
    try:
        print(get(rows[options.name], models))
    except CannotGet as error:
        return failure(error)
    return 0
