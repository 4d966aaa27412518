"""Write a transformer in one of ComfyUI's quantised formats, and say what each layer loses."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..model_loaders.quantised.writer import StoredWeight
from ..model_loaders.transformer import write_quantised_transformer
from .calls import BadCall, failure
from .console import printable, tell

MIB = 2**20


def source_and_name(model: Path) -> tuple[Path, str]:
    """The transformer of what MODEL names (a file, its folder, or a pipeline's), and a name for what is made of it."""
    if (model / "model_index.json").is_file():
        return model / "transformer", model.resolve().name
    if model.is_dir():
        around = model.resolve().parent
        return model, around.name if (around / "model_index.json").is_file() else model.resolve().name
    return model, model.stem


def output_of(model: Path, name: str, options: argparse.Namespace) -> Path:
    """The file to write; BadCall where it cannot be written, or would replace another."""
    output = options.output or Path(f"{name}-{options.format}.safetensors")
    if output.suffix != ".safetensors":
        raise BadCall(f"--output is {output}; give the name of a .safetensors file")
    if not output.parent.is_dir():
        raise BadCall(f"--output is {output}, whose folder does not exist")
    for file in (output, output.with_suffix(".json")):
        if file.exists():
            raise BadCall(f"{file} exists; give another name with --output")
    return output


def line_of(weight: StoredWeight) -> str:
    """One quantised layer for a person: its name, its format, and what was lost."""
    return f"{weight.name.removesuffix('.weight')}: {weight.format}, error {weight.error:.2%}"


def summary_of(weights: list[StoredWeight], output: Path) -> list[str]:
    """The sizes, and the mean and largest error of the layers."""
    made = [weight for weight in weights if weight.format]
    worst = max(made, key=lambda weight: weight.error)
    mean = sum(weight.error * weight.before for weight in made) / sum(weight.before for weight in made)
    before, after = (sum(getattr(weight, name) for weight in weights) for name in ("before", "after"))
    return [
        f"{len(made)} layers quantised, mean error {mean:.2%}, largest {worst.error:.2%} ({worst.name})",
        f"{after / MIB:,.1f} MiB of {before / MIB:,.1f} in bfloat16 ({after / before:.3f})",
        f"{output}",
    ]


def quantize_command(options: argparse.Namespace) -> int:
    """``options``: model, format, output. The errors of layers are root mean squares over that of the weight."""
    source, name = source_and_name(options.model)
    output = output_of(options.model, name, options)
    weights: list[StoredWeight] = []

    def written(weight: StoredWeight) -> None:
        weights.append(weight)
        if weight.format:
            print(printable(line_of(weight)), flush=True)

    tell(f"{options.format} of {source}; the error of a layer is that of its weights, relative")
    try:
        write_quantised_transformer(source, output, options.format, written)
    except (OSError, ValueError) as error:
        return failure(error)
    for line in summary_of(weights, output):
        print(printable(line))
    return 0
