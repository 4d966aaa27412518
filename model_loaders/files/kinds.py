"""The kind of a checkpoint, identified by its keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from ...networks.families import FAMILIES
from .checkpoint import Checkpoint, UnusableFile


class Kind(Enum):
    """The kind of a file: a key, and a label for messages."""

    SPRINT = "sprint", "SANA-Sprint transformer"
    IMAGE = "image", "SANA transformer"
    VIDEO = "video", "SANA-Video transformer"
    LONG_VIDEO = "long_video", "LongSANA transformer"
    CONTROLNET = "controlnet", "SANA ControlNet"
    DC_AE = "dc_ae", "DC-AE"
    WAN_VAE = "wan_vae", "Wan VAE"
    LTX2_VAE = "ltx2_vae", "LTX-2 video VAE"
    GEMMA2 = "gemma2", "Gemma-2 text encoder"
    LORA = "lora", "LoRA"
    GEMMA3 = "gemma3", "Gemma-3 text encoder"
    LANGUAGE_MODEL = "language_model", "language model that is not Gemma-2"
    SDXL = "sdxl", "Stable Diffusion XL checkpoint"
    SD2 = "sd2", "Stable Diffusion 2 checkpoint"
    SD1 = "sd1", "Stable Diffusion 1 checkpoint"
    SD = "sd", "Stable Diffusion checkpoint"
    SD3 = "sd3", "Stable Diffusion 3 model"
    FLUX = "flux", "Flux model"
    WAN = "wan", "Wan video model"
    SD_VAE = "sd_vae", "Stable Diffusion VAE"
    T5 = "t5", "T5 text encoder"
    CLIP = "clip", "CLIP text encoder"

    def __init__(self, key: str, label: str):
        self.key, self.label = key, label


class Naming(Enum):
    """The naming scheme of the weights."""

    DIFFUSERS = "diffusers", ""
    NVLABS = "nvlabs", " in NVlabs' naming"
    WAN = "wan", " in Wan's naming"

    def __init__(self, key: str, label: str):
        self.key, self.label = key, label


@dataclass(frozen=True)
class Description:
    """The kind of a checkpoint and its naming scheme."""

    kind: Kind
    naming: Naming = Naming.DIFFUSERS

    @property
    def label(self) -> str:
        return self.kind.label + self.naming.label


TRANSFORMERS = tuple(kind for kind in Kind if kind.key in FAMILIES)
"""The kinds that networks.families has a row for, by its key."""

VIDEO_TRANSFORMERS = tuple(kind for kind in TRANSFORMERS if FAMILIES[kind.key].video)
IMAGE_VAES = (Kind.DC_AE,)
VIDEO_VAES = (Kind.WAN_VAE, Kind.LTX2_VAE)
VAES = (*IMAGE_VAES, *VIDEO_VAES)

_NVLABS = Naming.NVLABS
SIGNATURES: tuple[tuple[Description, tuple[str, ...]], ...] = tuple(
    (Description(kind, *naming), keys)
    for kind, naming, keys in (
        (Kind.CONTROLNET, (), ("controlnet_blocks.0.weight", "input_block.weight")),
        (Kind.CONTROLNET, (_NVLABS,), ("controlnet.0.copied_block.scale_shift_table", "attention_y_norm.weight")),
        (Kind.SPRINT, (), ("time_embed.guidance_embedder.linear_1.weight", "caption_norm.weight")),
        (Kind.VIDEO, (), ("transformer_blocks.0.ff.conv_temp.weight", "caption_norm.weight")),
        (Kind.IMAGE, (), ("transformer_blocks.0.ff.conv_inverted.weight", "caption_norm.weight")),
        (Kind.VIDEO, (_NVLABS,), ("blocks.0.mlp.t_conv.weight", "attention_y_norm.weight")),
        (Kind.SPRINT, (_NVLABS,), ("cfg_embedder.mlp.0.weight", "attention_y_norm.weight")),
        (Kind.IMAGE, (_NVLABS,), ("blocks.0.mlp.inverted_conv.conv.weight", "attention_y_norm.weight")),
        (Kind.DC_AE, (), ("encoder.down_blocks.0.0.conv1.weight", "decoder.conv_in.weight", "decoder.norm_out.weight")),
        (Kind.DC_AE, (), ("encoder.conv_in.conv.weight", "decoder.conv_in.weight", "decoder.norm_out.weight")),
        (Kind.DC_AE, (_NVLABS,), ("encoder.project_in.conv.weight", "decoder.project_in.main.conv.weight")),
        (Kind.DC_AE, (_NVLABS,), ("encoder.project_in.conv.conv.weight", "decoder.project_in.main.conv.weight")),
        (Kind.GEMMA3, (), ("layers.0.self_attn.q_norm.weight", "layers.0.pre_feedforward_layernorm.weight")),
        (
            Kind.GEMMA3,
            (),
            ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
        ),
        (Kind.GEMMA2, (), ("layers.0.pre_feedforward_layernorm.weight", "embed_tokens.weight")),
        (Kind.GEMMA2, (), ("model.layers.0.pre_feedforward_layernorm.weight", "model.embed_tokens.weight")),
        (Kind.LANGUAGE_MODEL, (), ("model.layers.0.self_attn.q_proj.weight",)),
        (Kind.SDXL, (), ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids",)),
        (Kind.SDXL, (), ("conditioner.embedders.1.model.ln_final.weight",)),
        (Kind.SD2, (), ("cond_stage_model.model.ln_final.weight",)),
        (Kind.SD1, (), ("cond_stage_model.transformer.text_model.final_layer_norm.weight",)),
        (Kind.SD, (), ("model.diffusion_model.input_blocks.0.0.weight",)),
        (Kind.SD3, (), ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",)),
        (Kind.FLUX, (), ("double_blocks.0.img_attn.qkv.weight",)),
        (Kind.FLUX, (), ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight",)),
        (Kind.WAN, (), ("blocks.0.cross_attn.k.weight", "patch_embedding.weight")),
        (Kind.WAN_VAE, (Naming.WAN,), ("decoder.middle.0.residual.0.gamma", "conv2.weight")),
        (Kind.WAN_VAE, (), ("decoder.mid_block.resnets.0.norm1.gamma", "post_quant_conv.weight")),
        (Kind.LTX2_VAE, (), ("decoder.mid_block.resnets.0.conv1.conv.weight", "latents_mean")),
        (Kind.SD_VAE, (), ("decoder.mid.block_1.norm1.weight",)),
        (Kind.SD_VAE, (), ("decoder.mid_block.resnets.0.norm1.weight",)),
        (Kind.T5, (), ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
        (Kind.CLIP, (), ("text_model.encoder.layers.0.self_attn.q_proj.weight",)),
    )
)
"""The first row whose keys are all present is the checkpoint's."""

PREFIX = "model.diffusion_model."
"""The prefix of a transformer's names in files that ComfyUI saved."""

TRAINING_PREFIX = "model."
"""The prefix of a transformer's names in the files of LongSANA's training."""

LORA_MARKS = (".lora_A.", ".lora_down.", ".lora.down.", "lora_unet_", "lora_transformer_", ".hada_w1_a", ".lokr_w1")


def _config_class(kind: Kind) -> str:
    return FAMILIES[kind.key].config_class or FAMILIES[kind.key].module


CLASSES: dict[str, tuple[Kind, ...]] = {
    **{
        name: tuple(kind for kind in TRANSFORMERS if _config_class(kind) == name)
        for name in {_config_class(kind) for kind in TRANSFORMERS}
    },
    "SanaControlNetModel": (Kind.CONTROLNET,),
    "AutoencoderDC": (Kind.DC_AE,),
    "AutoencoderKLWan": (Kind.WAN_VAE,),
    "AutoencoderKLLTX2Video": (Kind.LTX2_VAE,),
    "gemma2": (Kind.GEMMA2,),
}
"""The class name or model_type in a folder's config.json to the possible kinds."""


def describe(keys: Iterable[str]) -> Description | None:
    """The description of a checkpoint with these keys, or None."""
    keys = set(keys)
    for names in (keys, {key.removeprefix(PREFIX) for key in keys}):
        for description, needed in SIGNATURES:
            if names.issuperset(needed):
                return description
    names = {key.removeprefix(TRAINING_PREFIX) for key in keys}
    for description, needed in SIGNATURES:
        if description.kind in TRANSFORMERS and names.issuperset(needed):
            return description
    if any(mark in key for key in keys for mark in LORA_MARKS):
        return Description(Kind.LORA)
    return None


VARIANTS = ("auto", "standard", "long")
LONG_NAMES = ("longlive", "longsana")
"""What the names of LongSANA's files hold: its keys and shapes are those of SANA-Video."""


def of_variant(found: Description, path: Path, config: Mapping | None = None, variant: str = "auto") -> Description:
    """A SANA-Video's description as that of LongSANA, where its config or its name says so, or ``variant`` does."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    if found.kind not in VIDEO_TRANSFORMERS:
        if variant == "long":
            raise ValueError(f"variant is long, but {path} is a {found.label}: choose auto")
        return found
    named = path.parent.name if path.name == "transformer" else path.name
    by_file = (config or {}).get("_class_name") == FAMILIES[Kind.LONG_VIDEO.key].config_class
    long = by_file or any(name in named.lower() for name in LONG_NAMES)
    kind = Kind.LONG_VIDEO if variant == "long" or (variant == "auto" and long) else Kind.VIDEO
    return replace(found, kind=kind)


def require_kind(checkpoint: Checkpoint, wanted: tuple[Kind, ...], hint: str) -> Description:
    """The checkpoint's description if its kind is in ``wanted``; otherwise UnusableFile with the kind that it has."""
    found = describe(checkpoint)
    if found is not None and found.kind in wanted:
        return found
    what = f"is a {found.label}" if found else f"has unknown keys such as {', '.join(sorted(checkpoint)[:3])}"
    raise UnusableFile(f"{checkpoint.path} {what}, not a {wanted[0].label}. {hint}")


def kinds_of_config(config: Mapping) -> tuple[Kind, ...] | None:
    """The possible kinds for a config.json, or None if its class is unknown."""
    name = config.get("_class_name") or config.get("model_type")
    return CLASSES.get(name) if isinstance(name, str) else None
