"""sana/loaders: files to MODEL, CLIP and VAE."""

from __future__ import annotations

import math

from .. import host
from ..model_loaders import controlnet, lora, text_encoder, transformer, vae
from ..model_loaders.files import folders
from ..model_loaders.files.kinds import TRANSFORMERS, VAES, VARIANTS, Kind
from ..model_loaders.files.listing import models_of_kind
from ..model_loaders.versions import check_libraries
from ..networks.precision import (
    PRODUCTS,
    TEXT_ENCODER_DTYPES,
    TRANSFORMER_DTYPES,
    VAE_DTYPES,
    narrow_weight_dtype,
    parse_weight_dtype,
)
from . import checks, rules
from .models import require_sana

TRANSFORMER_FOLDERS = folders.LOADERS["SanaLoadTransformer"][1]
DTYPE_TIP = (
    "How weights are stored in memory. default keeps the dtype of the file; fp8 halves the memory of bf16, int8_bnb "
    "that of its linear layers. ComfyUI chooses the compute dtype for your device."
)


def _roots(*kinds: str):
    return [root for kind in kinds for root in host.current().roots(kind)]


def _choice(names: list[str], what: str, tooltip: str, *kinds: str):
    """A list to choose a model from; where it would be empty, its one entry says what goes where."""
    return (folders.demo_last(names) or [_none_found(what, *kinds)], {"tooltip": tooltip})


def _none_found(what: str, *kinds: str) -> str:
    return f"none found: put a {what} in {folders.folder_for(_roots(*kinds))}"


def _weight_dtype(values: tuple[str, ...]):
    return (list(values), {"default": "default", "tooltip": DTYPE_TIP, "advanced": True})


def _products():
    tip = (
        "For quantised files, in ComfyUI 0.8 and later: native multiplies in the file's format where the device can; "
        "full precision dequantises each weight at each use."
    )
    return (list(PRODUCTS), {"default": PRODUCTS[0], "tooltip": tip, "advanced": True})


def _validate_name(name: str | None, what: str, *kinds: str):
    """True, or an error message for a name that no model folder has, which ComfyUI shows before it runs anything."""
    if name is None:  # connected to another node
        return True
    if name == _none_found(what, *kinds):
        return f"no {what} is there yet: put one in {folders.folder_for(_roots(*kinds))}, then press R"
    try:
        folders.find_model(_roots(*kinds), name, what)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return True


class SanaLoadPipeline:
    DISPLAY_NAME = "Sana Load Pipeline"
    CATEGORY = "sana/loaders"
    DESCRIPTION = "Loads a SANA pipeline from a folder in diffusers' layout: transformer, Gemma-2 text encoder and VAE."
    SEARCH_ALIASES = ["sana", "nvidia", "sana sprint", "sana video", "diffusers loader", "load sana"]
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = (
        "The SANA transformer.",
        "Gemma-2, SANA's text encoder.",
        "The autoencoder, for images or for video.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        names = folders.list_folders(_roots("diffusers"), "model_index.json")
        tip = "A folder under models/diffusers that contains a model_index.json. A name with demo: the demo weights."
        dtype = {"weight_dtype": _weight_dtype(TRANSFORMER_DTYPES)}
        return {"required": {"pipeline": _choice(names, "pipeline folder", tip, "diffusers"), **dtype}}

    VALIDATE_INPUTS = checks.Validation(
        lambda pipeline=None, **_: _validate_name(pipeline, "pipeline folder", "diffusers"),
        rules.sampler_fits,
        rules.vae_fits,
        always="pipeline",
    )

    def load(self, pipeline, weight_dtype):
        from ..model_loaders.pipeline import load_pipeline

        check_libraries()
        parse_weight_dtype(weight_dtype, TRANSFORMER_DTYPES)
        here = host.current()
        loaded = load_pipeline(folders.find_model(_roots("diffusers"), pipeline, "pipeline folder"))
        model = here.model(loaded.transformer, weight_dtype)
        clip = here.clip(loaded.text_encoder, narrow_weight_dtype(weight_dtype, TEXT_ENCODER_DTYPES))
        autoencoder = here.vae(loaded.vae, narrow_weight_dtype(weight_dtype, VAE_DTYPES))
        here.pair(model, autoencoder, clip)
        return model, clip, autoencoder


class SanaLoadTransformer:
    DISPLAY_NAME = "Sana Load Transformer"
    CATEGORY = "sana/loaders"
    DESCRIPTION = (
        "Loads a SANA transformer: a diffusers folder, or one file in diffusers' or NVlabs' naming (safetensors or "
        ".pth). Its type and size are read from the file."
    )
    SEARCH_ALIASES = ["sana", "nvidia", "load diffusion model", "unet loader", "sana checkpoint"]
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The SANA transformer.",)

    @classmethod
    def INPUT_TYPES(cls):
        names = models_of_kind(_roots(*TRANSFORMER_FOLDERS), TRANSFORMERS)
        tip = "A file or folder under models/diffusion_models or models/checkpoints."
        variant = {
            "default": VARIANTS[0],
            "tooltip": "Whether a SANA-Video is LongSANA (long). auto: what its config or its file's name says.",
            "advanced": True,
        }
        dtype = {"weight_dtype": _weight_dtype(TRANSFORMER_DTYPES)}
        return {
            "required": {"model_name": _choice(names, "transformer", tip, *TRANSFORMER_FOLDERS), **dtype},
            "optional": {"products": _products(), "variant": (list(VARIANTS), variant)},
        }

    VALIDATE_INPUTS = checks.Validation(
        lambda model_name=None, **_: _validate_name(model_name, "transformer", *TRANSFORMER_FOLDERS),
        rules.sampler_fits,
        always="model_name",
    )

    def load(self, model_name, weight_dtype, products=PRODUCTS[0], variant="auto"):
        check_libraries()
        parse_weight_dtype(weight_dtype, TRANSFORMER_DTYPES)
        path = folders.find_model(_roots(*TRANSFORMER_FOLDERS), model_name, "transformer")
        return (host.current().model(transformer.load_transformer(path, variant), weight_dtype, products),)


class SanaLoadTextEncoder:
    DISPLAY_NAME = "Sana Load Text Encoder"
    CATEGORY = "sana/loaders"
    DESCRIPTION = (
        "Loads Gemma-2, SANA's text encoder: its Hugging Face folder, or one safetensors file with the tokenizer "
        "inside, as ComfyUI uses it for Lumina 2. It never computes in float16."
    )
    SEARCH_ALIASES = ["sana", "gemma", "gemma loader", "load clip"]
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)
    OUTPUT_TOOLTIPS = ("Gemma-2 as a CLIP; core CLIP Text Encode also works with it.",)

    @classmethod
    def INPUT_TYPES(cls):
        names = models_of_kind(_roots("text_encoders"), (Kind.GEMMA2,))
        tip = "A folder or file of Gemma-2 under models/text_encoders."
        device_tip = "cpu keeps the text encoder off the graphics card: slower, but saves up to 5 GB of its memory."
        return {
            "required": {
                "encoder_name": _choice(names, "text encoder", tip, "text_encoders"),
                "weight_dtype": _weight_dtype(TEXT_ENCODER_DTYPES),
                "device": (["default", "cpu"], {"default": "default", "tooltip": device_tip, "advanced": True}),
            },
            "optional": {"products": _products()},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, encoder_name=None):
        return _validate_name(encoder_name, "text encoder", "text_encoders")

    def load(self, encoder_name, weight_dtype, device, products=PRODUCTS[0]):
        check_libraries()
        parse_weight_dtype(weight_dtype, TEXT_ENCODER_DTYPES)
        path = folders.find_model(_roots("text_encoders"), encoder_name, "text encoder")
        return (host.current().clip(text_encoder.load_text_encoder(path), weight_dtype, device, products),)


class SanaLoadVAE:
    DISPLAY_NAME = "Sana Load VAE"
    CATEGORY = "sana/loaders"
    DESCRIPTION = (
        "Loads one of SANA's autoencoders: DC-AE for images, the Wan 2.1 VAE or the LTX-2 video VAE for video. "
        "Its type is read from the file. It never computes in float16."
    )
    SEARCH_ALIASES = ["sana", "sana video", "dc-ae", "dcae", "wan vae", "ltx vae", "load vae"]
    FUNCTION = "load"
    RETURN_TYPES = ("VAE",)
    OUTPUT_TOOLTIPS = ("The autoencoder, for core VAE Decode and VAE Encode.",)

    @classmethod
    def INPUT_TYPES(cls):
        names = models_of_kind(_roots("vae"), VAES)
        tip = "A file or folder under models/vae."
        return {"required": {"vae_name": _choice(names, "VAE", tip, "vae"), "weight_dtype": _weight_dtype(VAE_DTYPES)}}

    VALIDATE_INPUTS = checks.Validation(
        lambda vae_name=None, **_: _validate_name(vae_name, "VAE", "vae"), rules.vae_fits, always="vae_name"
    )

    def load(self, vae_name, weight_dtype):
        check_libraries()
        parse_weight_dtype(weight_dtype, VAE_DTYPES)
        path = folders.find_model(_roots("vae"), vae_name, "VAE")
        return (host.current().vae(vae.load_vae(path), weight_dtype),)


class SanaLoadLora:
    DISPLAY_NAME = "Sana Load LoRA"
    CATEGORY = "sana/loaders"
    DESCRIPTION = (
        "Applies a LoRA to a SANA model: files of diffusers, PEFT, kohya, LyCORIS and OneTrainer. Several can be "
        "chained. Keys that match no layer are counted and listed in the log."
    )
    SEARCH_ALIASES = ["sana", "lora", "load lora", "lora loader", "peft", "kohya", "onetrainer"]
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the LoRA; the input model is not changed.",)

    @classmethod
    def INPUT_TYPES(cls):
        names = models_of_kind(_roots("loras"), (Kind.LORA,))
        tip = "A file under models/loras, made for this size of SANA."
        strength = {
            "default": 1.0,
            "min": -100.0,
            "max": 100.0,
            "step": 0.01,
            "tooltip": "LoRA strength: 1 as trained, 0 has no effect, negative values invert it.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A SANA transformer."}),
                "lora_name": _choice(names, "LoRA", tip, "loras"),
                "strength": ("FLOAT", strength),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name=None):
        return _validate_name(lora_name, "LoRA", "loras")

    def load(self, model, lora_name, strength):
        check_libraries()
        if not math.isfinite(strength):
            raise ValueError(f"strength is {strength}; give a number, such as 1")
        here = host.current()
        require_sana(model)
        path = folders.find_model(_roots("loras"), lora_name, "LoRA")
        loaded = lora.load_lora(path, here.weight_shapes(model))
        return (model if strength == 0 else here.apply_lora(model, loaded, strength),)


class SanaLoadControlNet:
    DISPLAY_NAME = "Sana Load ControlNet"
    CATEGORY = "sana/loaders"
    DESCRIPTION = (
        "Loads a SANA ControlNet for core Apply ControlNet, which also needs SANA's VAE. It works with SANA and "
        "with SANA-Sprint of the same size."
    )
    SEARCH_ALIASES = ["sana", "controlnet", "load controlnet", "hed", "canny"]
    FUNCTION = "load"
    RETURN_TYPES = ("CONTROL_NET",)
    OUTPUT_TOOLTIPS = ("A ControlNet for Apply ControlNet.",)

    @classmethod
    def INPUT_TYPES(cls):
        names = models_of_kind(_roots("controlnet"), (Kind.CONTROLNET,))
        tip = "A file or folder of a SANA ControlNet under models/controlnet."
        dtype = {"weight_dtype": _weight_dtype(TRANSFORMER_DTYPES)}
        return {"required": {"control_net_name": _choice(names, "ControlNet", tip, "controlnet"), **dtype}}

    @classmethod
    def VALIDATE_INPUTS(cls, control_net_name=None):
        return _validate_name(control_net_name, "ControlNet", "controlnet")

    def load(self, control_net_name, weight_dtype):
        check_libraries()
        parse_weight_dtype(weight_dtype, TRANSFORMER_DTYPES)
        path = folders.find_model(_roots("controlnet"), control_net_name, "ControlNet")
        return (host.current().control_net(controlnet.load_controlnet(path), weight_dtype),)
