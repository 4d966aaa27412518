"""Gemma-2's config: a config.json held against the weights' shapes before anything is built, or the shapes alone.

Only what Gemma2Model is built from is read. The rest of a config.json can make transformers load code from a hub
(``_attn_implementation``, ``auto_map``), another package (``quantization_config``) or tables of any size
(``num_labels``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files.checkpoint import Checkpoint, UnusableFile, brief

EMBEDDING = "embed_tokens.weight"

GEMMA_2_2B: dict[str, Any] = {
    "model_type": "gemma2",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
}
"""Gemma-2-2B's published numbers that shapes do not tell; what a config.json leaves out is this as well."""

NUMBERS = {
    "head_dim": (int, 2, 4096),
    "query_pre_attn_scalar": (int, 1, 2**20),
    "sliding_window": (int, 1, 2**24),
    "max_position_embeddings": (int, 1, 2**24),
    "rms_norm_eps": (float, 0.0, 1.0),
    "rope_theta": (float, 1.0, 1e9),
    "attn_logit_softcapping": (float, 1e-3, 1e6),
    "final_logit_softcapping": (float, 1e-3, 1e6),
}
"""Each number's type, its least and its greatest value."""

OPTIONAL = ("attn_logit_softcapping", "final_logit_softcapping")
"""Numbers that may be null: nothing is capped then."""

MOST_LAYERS = 256
"""Gemma-2's largest has 46."""

LAYER_TYPES = ("sliding_attention", "full_attention")


def read_config(checkpoint: Checkpoint, file: Path | None, entries: Mapping | None) -> dict:
    """What Gemma2Config is made of: the ``entries`` of ``file``, else Gemma-2-2B's numbers and the weights' shapes.

    UnusableFile where an entry does not agree with the weights or is not a number that a Gemma-2 can have.
    """
    entries = {} if entries is None else entries
    config = GEMMA_2_2B | {key: entries[key] for key in GEMMA_2_2B if key in entries}
    config["rope_theta"] = _rope_theta(file, entries)
    _check_names(file, config, entries)
    for key, limits in NUMBERS.items():
        if config[key] is not None or key not in OPTIONAL:
            config[key] = _number(file, key, config[key], *limits)
    sizes = _sizes(checkpoint, file, config["head_dim"])
    _check_sizes(file, entries, sizes, config["head_dim"])
    return config | sizes | _layer_types(file, entries, sizes["num_hidden_layers"])


def _refuse(file: Path | None, key: str, value: object, reason: str):
    raise UnusableFile(
        f"{file} says {key} is {brief(value)}, {reason}; it may belong to another model: download it again"
    )


def _number(file: Path | None, key: str, value: Any, kind: type, least: float, most: float):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= most or value != kind(value):
        _refuse(file, key, value, f"where a number from {least} to {most} belongs")
    return kind(value)


def _rope_theta(file: Path | None, entries: Mapping):
    """The base of the rotary frequencies, where transformers 5 writes it, or 4."""
    rope = entries.get("rope_parameters") or entries.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        _refuse(file, "rope_parameters", rope, "and Gemma-2 has the default kind of rotary embedding")
    return rope.get("rope_theta", entries.get("rope_theta", GEMMA_2_2B["rope_theta"]))


def _check_names(file: Path | None, config: Mapping, entries: Mapping) -> None:
    for key in ("model_type", "hidden_activation"):
        if config[key] != GEMMA_2_2B[key]:
            _refuse(file, key, config[key], f"and Gemma-2 has {GEMMA_2_2B[key]}")
    if not isinstance(config["attention_bias"], bool):
        _refuse(file, "attention_bias", config["attention_bias"], "which is neither true nor false")
    if entries.get("use_bidirectional_attention"):
        _refuse(file, "use_bidirectional_attention", entries["use_bidirectional_attention"], "and Gemma-2 is causal")


def _sizes(checkpoint: Checkpoint, file: Path | None, head: int) -> dict:
    """The sizes that the weights' shapes tell, for heads of ``head`` channels."""
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
    query, key, hidden = (checkpoint.shape(f"layers.0.{name}.weight", 2)[0] for name in names)
    vocabulary, width = checkpoint.shape(EMBEDDING, 2)
    layers = {name.split(".")[1] for name in checkpoint if name.startswith("layers.")}
    if len(layers) > MOST_LAYERS:
        raise UnusableFile(f"{checkpoint.path} has {len(layers)} layers; Gemma-2 has {MOST_LAYERS} at most")
    if head % 2 or query % head or key % head or query % key or width % (query // head):
        whose = f"as {file} says" if file else "as Gemma-2-2B's do; put its config.json beside it"
        raise UnusableFile(
            f"{checkpoint.path}: {query} query and {key} key channels over {width} do not divide into heads of {head}, "
            f"{whose}"
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": query // head,
        "num_key_value_heads": key // head,
    }


def _check_sizes(file: Path | None, entries: Mapping, sizes: Mapping, head: int) -> None:
    for key, size in sizes.items():
        value = entries.get(key, size)
        if type(value) is not int or value != size:
            channels = f" of {head} channels" if key.endswith("heads") else ""
            _refuse(file, key, value, f"but the weights have {size}{channels}")


def _layer_types(file: Path | None, entries: Mapping, layers: int) -> dict:
    """What a config.json says of each layer's attention; where it says nothing, every other one is sliding."""
    types = entries.get("layer_types")
    if types is None:
        return {}
    if not isinstance(types, list) or len(types) != layers or any(kind not in LAYER_TYPES for kind in types):
        _refuse(file, "layer_types", types, f"where {layers} of {' or '.join(LAYER_TYPES)} belong")
    return {"layer_types": types}
