"""What the nodes of the older Sana packs become: a table, and a function for each row that needs one.

ComfyUI_ExtraModels (its Sana, Gemma and DC-AE nodes), and where a name says enough, ComfyUI-SANA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DTYPES = {"FP32": "fp32", "BF16": "bf16"}
BINS = {"1024px": "1024px", "512px": "512px", "2K": "2048px", "4K": "4096px"}
FROM_CONFIG = {"_2K": "2K", "_4K": "4K"}
ENCODER = "gemma_2_2b_it_elm_bf16.safetensors"


@dataclass
class New:
    """A node of ours: class, values of widgets, and its inputs from other nodes by the older node's names.

    ``notes``: what could not be kept, for a person.
    """

    class_type: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def transformer(old: Mapping) -> New:
    name = str(old.get("ckpt_name", ""))
    file = f"{name.split('/')[-1]}.pth" if name.startswith("Efficient-Large-Model/") else name
    notes = [f"put {file} into models/diffusion_models (it was in models/sana)"] if file != name else []
    return New("SanaLoadTransformer", {"model_name": file, "weight_dtype": _dtype(old, notes, "fp16")}, {}, notes)


def _dtype(old: Mapping, notes: list[str], half: str = "default") -> str:
    wanted = str(old.get("dtype", "auto"))
    if wanted == "FP16" and half == "default":
        notes.append("float16 overflows in this model: weight_dtype is default")
    return half if wanted == "FP16" else DTYPES.get(wanted, "default")


def text_encoder(old: Mapping) -> New:
    notes = [f"put {ENCODER} into models/text_encoders, or choose your Gemma-2-2B-it"]
    device = "cpu" if old.get("device") == "cpu" else "default"
    if "4bit" in str(old.get("model_name")):
        notes.append("the 4-bit Gemma is not supported: choose weight_dtype int8_bnb to save memory")
    return New(
        "SanaLoadTextEncoder",
        {"encoder_name": ENCODER, "weight_dtype": _dtype(old, notes), "device": device},
        {},
        notes,
    )


def vae(old: Mapping) -> New | None:
    if "dcae" not in str(old.get("vae_type", "")) and "dc-ae" not in str(old.get("vae_name", "")):
        return None
    name = str(old.get("vae_name", ""))
    file = f"{name.split('/')[-1].removesuffix('-diffusers')}.safetensors" if name.startswith("mit-han-lab/") else name
    notes = [f"put DC-AE into models/vae as {file}"] if file != name else []
    return New("SanaLoadVAE", {"vae_name": file, "weight_dtype": _dtype(old, notes)}, {}, notes)


def prompt(instruction: str) -> Callable[[Mapping], New]:
    return lambda old: New(
        "SanaEncodePrompt", {"text": old.get("text", ""), "instruction": instruction}, {"GEMMA": "clip"}
    )


def empty_latent(old: Mapping) -> New:
    values = {key: old.get(key, usual) for key, usual in (("width", 1024), ("height", 1024), ("batch_size", 1))}
    notes = []
    for side in ("width", "height"):
        if isinstance(values[side], int) and values[side] % 32:
            notes.append(f"{side} was {values[side]}: rounded to a multiple of 32")
            values[side] = max(32, round(values[side] / 32) * 32)
    return New("SanaEmptyLatent", values, {"width": "width", "height": "height"}, notes)


def resolution(old: Mapping) -> New:
    model = str(old.get("model", "1024px"))
    table = BINS.get(next((size for end, size in FROM_CONFIG.items() if model.endswith(end)), model), "1024px")
    side = int(table.removesuffix("px"))
    ratio = float(old.get("ratio", 1.0))
    return New("SanaResolution", {"width": round(side * ratio**0.5), "height": round(side / ratio**0.5), "bins": table})


def sprint_sampler(old: Mapping) -> New:
    """KSampler on SANA-Sprint, where the older pack ignored most of its settings."""
    values = {"seed": old.get("seed", 0), "steps": old.get("steps", 2), "denoise": old.get("denoise", 1.0)}
    links = {"model": "model", "positive": "positive", "latent_image": "latent_image"}
    notes = ["the negative prompt is not connected: SANA-Sprint has none"]
    if values["denoise"] != 1:
        notes.append(f"denoise is {values['denoise']}, which the older pack ignored: set it to 1 for the old result")
    return New("SanaSCMSample", values, links, notes)


Rule = Callable[[Mapping], "New | None"]

RULES: dict[str, tuple[list[str], Rule]] = {
    "SanaCheckpointLoader": (["ckpt_name", "model", "dtype", "enable_cfg_passthrough"], transformer),
    "GemmaLoader": (["model_name", "device", "dtype"], text_encoder),
    "SanaTextEncode": (["text"], prompt("image")),
    "GemmaTextEncode": (["text"], prompt("none")),
    "ExtraVAELoader": (["vae_name", "vae_type", "dtype"], vae),
    "EmptySanaLatentImage": (["width", "height", "batch_size"], empty_latent),
    "EmptyDCAELatentImage": (["width", "height", "batch_size"], empty_latent),
    "SanaEmptyLatentImage": (["width", "height", "batch_size"], empty_latent),
    "SanaResolutionSelect": (["model", "ratio"], resolution),
}
"""Older class: its widgets in order, and what it becomes (None: it stays)."""

KSAMPLER = ["seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"]

PASSED = {"ScmModelSampling": (["cfg_scale", "zsnr"], "model"), "SanaResolutionCond": (["width", "height"], "cond")}
"""Older classes that are not needed: their widgets, and the input that takes their place."""

UNKNOWN = {
    "SanaModelLoader": "Sana Load Pipeline",
    "SanaGenerate": "Sana Encode Prompt, Sana SCM Sample or Sana Flow Sample, and VAE Decode",
    "SanaCLIPLoader": "Sana Load Text Encoder",
    "SanaDiffusionLoader": "Sana Load Transformer",
    "SanaVAELoader": "Sana Load VAE",
    "TinySanaPreview": "nothing: previews are built in",
}
"""Classes that are left, and what to put in their place by hand."""
