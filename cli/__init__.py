"""The command line: sana-nodes run | batch | models | get | migrate | quantize | demo."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .calls import INTERRUPTED, BadCall
from .console import CannotPrint, tell, tolerant_streams

"""The exit code of a command that Ctrl-C ended, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0; 1 when a node or a download failed; 2 for an unusable call or workflow; 130 where Ctrl-C ended it.
    """
    with tolerant_streams():
        options = _parser().parse_args(arguments)
        if options.command is not _get:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            return options.command(options)
        except BadCall as error:
            tell(str(error))
            return 2
        except CannotPrint as error:
            tell(str(error))
            return 1
        except KeyboardInterrupt:
            tell("interrupted")
            return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sana-nodes", description="Run SANA workflows from the command line.")
    commands = parser.add_subparsers(required=True, metavar="run | batch | models | get | migrate | quantize | demo")
    run = commands.add_parser("run", help="run an API-format workflow to its end")
    run.add_argument("workflow", type=Path, metavar="WORKFLOW.json")
    run.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="NODE: a node's id or title"
    )
    run.add_argument("--models", type=Path, metavar="DIR", help="models folder (default: ./models, or ComfyUI's)")
    run.add_argument("--input", type=Path, metavar="DIR", help="input folder (default: ./input, or ComfyUI's)")
    run.add_argument("--output", type=Path, metavar="DIR", help="output folder (default: ./output, or ComfyUI's)")
    run.add_argument("--host", choices=("auto", "comfyui", "embedded"), default="auto")
    run.add_argument("--no-metadata", action="store_true", help="leave the workflow out of the files that are saved")
    run.add_argument("--json", action="store_true", help="print one JSON object instead of a line per file")
    run.set_defaults(command=_run)
    _add_batch(commands)
    models = commands.add_parser("models", help="what is found where, and what each example workflow lacks")
    models.add_argument("--models", type=Path, metavar="DIR")
    models.set_defaults(command=_models)
    get = commands.add_parser("get", help="download a published model into the models folder")
    get.add_argument("name", nargs="?", metavar="NAME", help="without it, the names are listed")
    get.add_argument("--to", type=Path, metavar="DIR", help="models folder (default: ./models, or ComfyUI's)")
    get.set_defaults(command=_get)
    migrate = commands.add_parser("migrate", help="translate a workflow of the older Sana packs into this pack's nodes")
    migrate.add_argument("workflow", type=Path, metavar="WORKFLOW.json", help="in the editor's or in API format")
    migrate.add_argument("--output", type=Path, metavar="FILE", help="default: WORKFLOW-sana-nodes.json beside it")
    migrate.set_defaults(command=_migrate)
    quantize = commands.add_parser("quantize", help="write a transformer in one of ComfyUI's quantised formats")
    quantize.add_argument("model", type=Path, metavar="MODEL", help="a file, a folder, or a pipeline's folder")
    quantize.add_argument("--format", required=True, choices=("fp8", "int8", "nvfp4", "mxfp8"))
    quantize.add_argument("--output", type=Path, metavar="FILE", help="default: ./MODEL-FORMAT.safetensors")
    quantize.set_defaults(command=_quantize)
    demo = commands.add_parser("demo", help="generate with the small demo weights that come with the pack")
    demo.add_argument("prompt", nargs="?", metavar="PROMPT")
    kind = demo.add_mutually_exclusive_group()
    kind.add_argument("--video", action="store_true", help="a video with SANA-Video")
    kind.add_argument("--long", action="store_true", help='20 seconds with LongSANA, of a PROMPT such as "A > B > C"')
    demo.add_argument("--output", type=Path, default=Path("output"), metavar="DIR")
    demo.set_defaults(command=_demo)
    return parser


def _add_batch(commands) -> None:
    batch = commands.add_parser("batch", help="run a table of rows through one workflow; given again, it continues")
    batch.add_argument("workflow", type=Path, metavar="WORKFLOW.json")
    batch.add_argument("table", metavar="TABLE", help="csv, tsv, jsonl or parquet; a column is NODE.INPUT")
    batch.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="for all rows")
    batch.add_argument(
        "--column", action="append", default=[], metavar="NAME=NODE.INPUT", help="what a column sets; NAME= for nothing"
    )
    batch.add_argument("--key", metavar="COLUMN", help="names each row's files (default: key or id, else its number)")
    batch.add_argument("--models", metavar="DIR", help="models folder (default: ./models)")
    batch.add_argument("--input", type=Path, metavar="DIR", help="input folder (default: ./input)")
    batch.add_argument("--output", default="output", metavar="DIR", help="files and manifest.jsonl; may be s3://…")
    batch.add_argument("--engine", choices=("local", "ray", "comfyui"), default="local", help="where rows are made")
    batch.add_argument("--workers", type=int, metavar="N", help="ray: processes that hold the models")
    batch.add_argument("--address", metavar="ADDRESS", help="ray: a cluster's; comfyui: HOST:PORT, …")
    batch.add_argument(
        "--batch", type=int, metavar="N", help="sample up to N rows together (default 8; with comfyui 1)"
    )
    batch.add_argument("--limit", type=int, metavar="N", help="make at most N rows in this call")
    batch.add_argument("--retry", type=int, default=0, metavar="N", help="try a row that fails N times again")
    batch.add_argument(
        "--changed", choices=("stop", "again", "keep"), default="stop", help="rows made of another workflow or row"
    )
    batch.add_argument("--no-metadata", action="store_true", help="leave the workflow out of the files that are saved")
    batch.add_argument("--json", action="store_true", help="print each row's line of the manifest")
    batch.set_defaults(command=_batch)


def _run(options: argparse.Namespace) -> int:
    from .run import run_command

    return run_command(options)


def _batch(options: argparse.Namespace) -> int:
    from .batch import batch_command

    return batch_command(options)


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo_command

    return demo_command(options)


def _models(options: argparse.Namespace) -> int:
    from .inventory import models_command

    return models_command(options)


def _migrate(options: argparse.Namespace) -> int:
    from .migrate import migrate_command

    return migrate_command(options)


def _quantize(options: argparse.Namespace) -> int:
    from .quantize import quantize_command

    return quantize_command(options)


def _get(options: argparse.Namespace) -> int:
    from .published import get_command

    return get_command(options)
