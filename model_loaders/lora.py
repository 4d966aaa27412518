"""Load LoRA files for SANA's transformers, as saved by diffusers, PEFT, kohya's scripts, LyCORIS and OneTrainer.

A LoRA changes a weight W to W + strength * alpha / rank * up @ down (arXiv 2106.09685). The loaded tensors
are always named ``<layer>.lora_up.weight``, ``<layer>.lora_down.weight``, ``<layer>.alpha`` and so on, where
``<layer>`` is the layer's name in diffusers' module: names that ComfyUI's adapters support.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..networks.lora import MAGNITUDE
from .files.checkpoint import Checkpoint, UnusableFile, json_object
from .files.folders import WEIGHT_SUFFIXES
from .files.kinds import Kind, require_kind
from .files.open import open_checkpoint, read_json
from .patterns import LayerPatterns, UnsupportedPattern

HINT = "Give Sana Load LoRA a LoRA of a SANA transformer (models/loras)."
METADATA_KEY = "lora_adapter_metadata"
"""The metadata entry of a safetensors header with PEFT's configuration, as written by diffusers."""

PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "lora_transformer_",
    "lora_unet_",
    "lycoris_",
)
"""Prefixes of layer names in the files of different trainers; a name can have several."""

LARGEST_ALPHA = 1e9

TEXT_PREFIXES = ("text_encoder", "lora_te", "bundle_emb")

ENDINGS = {
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_down": "lora_down.weight",
    "lora_up": "lora_up.weight",
    "lora.down": "lora_down.weight",
    "lora.up": "lora_up.weight",
    "lora_mid": "lora_mid.weight",
    "lora_magnitude_vector": MAGNITUDE,
}
"""PEFT's and kohya's names of a part, with ``.weight`` or ``.default.weight`` behind them, to ComfyUI's."""

OTHER_ENDING = re.compile(
    r"\.(alpha|dora_scale|rescale|diff|diff_b|(?:hada|lokr|oft|boft|glora)_\w+|oft_blocks|[ab][12]\.weight)$"
)
KNOWN_ENDING = re.compile(rf"\.({'|'.join(re.escape(e) for e in ENDINGS)})(?:\.default)?(?:\.weight)?$")


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA matched to a transformer.

    ``tensors``: ``<layer>.<part>`` to tensor; ``layers``: the layers that it changes; ``strays``: keys of
    the file that match no layer.
    """

    tensors: dict
    layers: tuple[str, ...]
    strays: tuple[str, ...]
    path: Path

    def parts(self, layer: str) -> dict:
        """The tensors that change one layer, by part."""
        return {key[len(layer) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{layer}.")}

    def unused_keys_message(self) -> str | None:
        """A log message about keys that are not used, or None."""
        if not self.strays:
            return None
        text = sum(key.startswith(TEXT_PREFIXES) for key in self.strays)
        named = ", ".join(self.strays[:5]) + (", …" if len(self.strays) > 5 else "")
        part = f" ({text} of them for the text encoder, which is not supported for SANA)" if text else ""
        return f"{self.path.name}: {len(self.strays)} keys match no layer of this model and are not used{part}: {named}"


def load_lora(path: Path, weights: Mapping[str, tuple[int, ...]]) -> LoadedLora:
    """A LoRA for a transformer; ``weights``: the shapes of its weights by name.

    UnusableFile if the file is not a LoRA, matches no layer of this transformer, or has matrices of
    another size.
    """
    checkpoint = open_checkpoint(path)
    require_kind(checkpoint, (Kind.LORA,), HINT)
    layers = {name.removesuffix(".weight"): shape for name, shape in weights.items() if name.endswith(".weight")}
    flat = {name.replace(".", "_"): name for name in layers}
    tensors, strays, matched = {}, [], set()
    for key in checkpoint:
        name, part = _split(key) or (key, None)
        layer = part and _layer(name, layers, flat)
        if not layer:
            strays.append(key)
            continue
        if f"{layer}.{part}" in tensors:
            raise UnusableFile(
                f"{path}: two of its keys, {key} among them, are the {part} of {layer}; keep one of them"
            )
        matched.add(layer)
        tensors[f"{layer}.{part}"] = checkpoint[key]
    if not matched:
        raise UnusableFile(
            f"{path}: none of its {len(strays)} keys (such as {strays[0]}) matches a layer of this model; "
            "it was made for another model"
        )
    changed = tuple(sorted(matched))
    for layer in changed:
        _check_parts(path, layer, layers[layer], tensors)
    _add_alphas(path, tensors, changed, _peft_config(checkpoint))
    return LoadedLora(tensors, changed, tuple(strays), Path(path))


def _split(key: str) -> tuple[str, str] | None:
    """A key as (layer name, ComfyUI's name of the part)."""
    if match := KNOWN_ENDING.search(key):
        return key[: match.start()], ENDINGS[match[1]]
    if match := OTHER_ENDING.search(key):
        return key[: match.start()], match[1]
    return None


def _layer(name: str, layers: Iterable[str], flat: Mapping[str, str]) -> str | None:
    """The layer that a trainer's name means, without what trainers put before it."""
    while True:
        if name in layers:
            return name
        if name in flat:
            return flat[name]
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            return None
        name = name[len(prefix) :]


def _check_parts(path: Path, layer: str, shape: tuple[int, ...], tensors: Mapping) -> None:
    """UnusableFile for matrices of another size, a rank of 0, and an alpha that is not one number."""
    alpha = tensors.get(f"{layer}.alpha")
    if alpha is not None and (alpha.numel() != 1 or not math.isfinite(float(alpha))):
        raise UnusableFile(f"{path}: {layer}.alpha holds {alpha.numel()} values where one finite number belongs")
    up, down = tensors.get(f"{layer}.lora_up.weight"), tensors.get(f"{layer}.lora_down.weight")
    if up is None and down is None:
        return
    if up is None or down is None:
        missing = "lora_up" if up is None else "lora_down"
        raise UnusableFile(f"{path}: {layer} lacks its {missing}; download the file again")
    if min(up.ndim, down.ndim) < 2 or not up.is_floating_point() or not down.is_floating_point():
        raise UnusableFile(f"{path}: the matrices of {layer} are not of two or more dimensions of floating numbers")
    changes = up.shape[0], math.prod(down.shape[1:])
    if changes != (shape[0], math.prod(shape[1:])) or math.prod(up.shape[1:]) != down.shape[0]:
        raise UnusableFile(
            f"{path}: it changes {layer} as a matrix of {changes[0]} x {changes[1]} (rank {down.shape[0]}), and this "
            f"model's is {shape[0]} x {math.prod(shape[1:])}: it was made for another size of SANA"
        )
    if down.shape[0] == 0:
        raise UnusableFile(f"{path}: {layer} has a rank of 0; download the file again")
    magnitude = tensors.get(f"{layer}.{MAGNITUDE}")
    if magnitude is not None and magnitude.numel() != shape[0]:
        raise UnusableFile(f"{path}: {layer} has {magnitude.numel()} magnitudes for {shape[0]} rows")


def _peft_config(checkpoint: Checkpoint) -> dict:
    """PEFT's configuration of the LoRA: from the file's header, or its adapter_config.json; else empty."""
    text = checkpoint.metadata.get(METADATA_KEY)
    if text:
        table = json_object(text, f"{checkpoint.path}: its {METADATA_KEY}")
        return {key.removeprefix("transformer."): value for key, value in table.items()}
    beside = checkpoint.path.parent / "adapter_config.json"
    return read_json(beside) if beside.is_file() and _is_own_config(checkpoint.path) else {}


def _is_own_config(file: Path) -> bool:
    """Whether an adapter_config.json beside a LoRA belongs to it: by PEFT's name, or since no other LoRA is there."""
    others = (other for other in file.parent.iterdir() if other.suffix in WEIGHT_SUFFIXES and other != file)
    return file.stem == "adapter_model" or next(others, None) is None


def _add_alphas(path: Path, tensors: dict, layers: Iterable[str], config: Mapping) -> None:
    """Give each layer without an alpha the one that PEFT's configuration says; none means alpha = rank."""
    import torch

    usual, table = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    if not isinstance(table, dict):
        raise UnusableFile(f"{path}: alpha_pattern is not a table of layers to numbers")
    try:
        patterns = LayerPatterns(table)
    except UnsupportedPattern as error:
        raise UnusableFile(f"{path}: alpha_pattern cannot be used: {error}") from error
    for layer in layers:
        down = tensors.get(f"{layer}.lora_down.weight")
        if down is None or f"{layer}.alpha" in tensors:
            continue
        alpha = patterns.get(layer, usual)
        if alpha is None:
            continue
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= LARGEST_ALPHA:
            raise UnusableFile(f"{path}: the alpha of {layer} is {str(alpha)[:80]}; a number belongs there")
        rank = down.shape[0]
        tensors[f"{layer}.alpha"] = torch.tensor(float(alpha) * (rank**0.5 if config.get("use_rslora") else 1.0))
