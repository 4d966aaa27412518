"""Gemma-2 as a ComfyUI CLIP."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.patcher_extension
import comfy.sd
import folder_paths
import torch

from ...model_loaders.files.kept import KeptTensors
from ...model_loaders.quantised.formats import set_values
from ...model_loaders.text_encoder import LoadedTextEncoder, load_text_encoder
from ...networks import precision, prompts
from ...networks.accelerated import Acceleration, by_setting, set_mode
from ...networks.prompt_cache import PromptCache, weights_probe
from ...networks.text_encoder import memory_of_tokens, use_fast_text_encoder
from ..errors import spoken
from . import packed
from .modules import loads_dynamically, log_compute_dtype, set_reload, use_comfy_ops, uses_bf16
from .patches import patch_other_layers
from .traps import ENCODER

CORE_GEMMA_TOKENIZERS = ("LuminaTokenizer", "PixelDiTGemma2Tokenizer")
CORE_GEMMA = (
    " (it reads the same file: CLIPLoader's Gemma-2 leaves out the soft caps in attention and gives other states)"
)
"""So in ComfyUI 0.3.64, 0.8.0 and 0.33: comfy.text_encoders.llama computes Gemma-2's attention without them."""

IDS, FIRST_KEPT, PLAIN, SOON = "gemma2", "gemma2_first_kept", "gemma2_plain", "gemma2_soon"
"""Names in a prompt's tokens; SOON: prompts that are asked for next, and are computed with it."""


class GemmaTokens(dict):
    """A prompt's tokens; an error for a node that looks for another model's."""

    def __missing__(self, name):
        raise ValueError(
            f"this CLIP is SANA's Gemma-2, which has no {name!r} tokens: "
            "encode with Sana Encode Prompt, Sana Encode Video Prompt or CLIP Text Encode"
        )


class SanaTokenizer:
    """Text to the tokens that ComfyUI passes from its tokenizer to its encoder.

    Core CLIPTextEncode calls it with the text alone and so gets the image instruction. Weights such as
    ``(word:1.2)`` are not parsed: SANA was trained without them.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    @spoken
    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        instruction: str = prompts.IMAGE_INSTRUCTION,
        max_sequence_length: int = 300,
        clean_caption: bool = False,
        **kwargs,
    ) -> dict:
        tokens = prompts.tokenize_prompt(self.tokenizer, text, instruction, max_sequence_length, clean_caption)
        pairs = [(token, 1.0, i + 1) if return_word_ids else (token, 1.0) for i, token in enumerate(tokens.ids)]
        return GemmaTokens({IDS: [pairs], FIRST_KEPT: tokens.first_kept})

    def untokenize(self, pairs):
        return [(pair, self.tokenizer.convert_ids_to_tokens(pair[0])) for pair in pairs]

    def decode(self, token_ids, skip_special_tokens=True):
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def state_dict(self):
        raise ValueError(
            "CLIPSave and CheckpointSave do not support SANA's Gemma-2: use the file or folder that it was loaded "
            "from. ModelSave saves the transformer, VAESave the VAE"
        )


class SanaTextModel(torch.nn.Module):
    """Gemma-2 in the interface of ComfyUI's text encoder models."""

    def __init__(self, loaded: LoadedTextEncoder, compute_dtype: torch.dtype, acceleration: Acceleration | None = None):
        super().__init__()
        self.gemma = loaded.module
        self.spec = loaded.spec
        self.dtypes = {compute_dtype}
        self.options: dict = {}
        self.fingerprint = fingerprint_of(loaded.module)
        folder = Path(folder_paths.get_user_directory()) / "sana-nodes" / "prompts"
        self.cache = PromptCache(loaded.spec.new_cache, KeptTensors(folder), acceleration)

    def set_clip_options(self, options: dict) -> None:
        if options.get("layer") is not None:
            raise ValueError("CLIP skip does not apply to SANA's Gemma-2: the last hidden state is used")
        self.options.update(options)

    def reset_clip_options(self) -> None:
        self.options = {}

    def encode_token_weights(self, tokens: dict):
        device = self.options.get("execution_device") or comfy.model_management.text_encoder_device()
        # ModelPatcher names the patches that a model was loaded with; hooks change weights under the same name
        weights = getattr(self, "current_weight_patches_uuid", None), weights_probe(self.gemma)
        wanted = [_prompt_of(tokens), *tokens.get(SOON, ())]
        states = self.cache.encode_all(self.gemma, wanted, device, weights, patched=not tokens.get(PLAIN))[0]
        return states.to(comfy.model_management.intermediate_device()).float(), None, {ENCODER: self.fingerprint}

    def memory_estimation_function(self, tokens: dict, device=None) -> int:
        if not tokens:
            return 0
        lengths = [len(tokens[IDS][0]), *(len(soon.ids) for soon in tokens.get(SOON, ()))]
        return memory_of_tokens(self.spec, lengths) + self.cache.nbytes

    def load_sd(self, state_dict):
        raise ValueError("SANA's text encoder is loaded by Sana Load Text Encoder or Sana Load Pipeline")


def fingerprint_of(module: torch.nn.Module) -> str:
    """Identifies a text encoder: a hash of some of its first matrix, the same in bfloat16 and float32."""
    first = next((p for p in module.parameters() if p.ndim > 1 and p.is_floating_point()), torch.zeros(0))
    some = first.detach().flatten()[:256].to("cpu", torch.bfloat16).float()
    return hashlib.sha256(some.numpy().tobytes()).hexdigest()[:16]


class SanaCLIP(comfy.sd.CLIP):
    """comfy's CLIP, whose encoder is always that of its patcher.

    ComfyUI 0.33 loads the encoder once more for hooks or for another card (SetClipHooks, SelectCLIPDevice) and sets the
    new patcher alone: the first encoder has no hooks, and its weights are not on that card.
    """

    _first: SanaTextModel

    @property
    def cond_stage_model(self):
        patcher = vars(self).get("patcher")
        return self._first if patcher is None else patcher.model

    @cond_stage_model.setter
    def cond_stage_model(self, model) -> None:
        self._first = model

    def clone(self, *arguments, **options):
        made = super().clone(*arguments, **options)
        made.__class__ = type(self)
        return made


def build_clip(
    loaded: LoadedTextEncoder, weight_dtype: str, device: str, products: str = precision.PRODUCTS[0], **more
):
    """A comfy CLIP around a loaded Gemma-2. It computes in bfloat16 or float32: float16 overflows in Gemma.

    Quantised weights stay packed with the default weight_dtype. ``products``: one of precision.PRODUCTS.
    """
    wanted = precision.parse_weight_dtype(weight_dtype, precision.TEXT_ENCODER_DTYPES)
    options = {"initial_device": torch.device("cpu")}
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    load_device = options.get("load_device", comfy.model_management.text_encoder_device())
    stored = precision.stored_dtype(loaded.module, wanted)
    compute = precision.compute_dtype(stored, uses_bf16(load_device, "fp32_text_enc"))
    kept = packed.packable(loaded.module, loaded.quantised if wanted is None else {})
    dequantised = {name: value for name, value in loaded.quantised.items() if name not in kept}
    set_values(loaded.module, dequantised, precision.floating(wanted) or compute)
    if loads_dynamically(load_device) and set_mode() != "off":
        more["disable_dynamic"] = True  # what is compiled stays where it is
    dynamic = loads_dynamically(load_device, more.get("disable_dynamic", False))
    use_fast_text_encoder(use_comfy_ops(loaded.module, wanted, compute, dynamic=dynamic))
    packed.use_packed_layers(loaded.module, kept, compute, load_device, products)
    log_compute_dtype("SANA's Gemma-2", compute)
    acceleration = by_setting(loaded.module, load_device, "SANA's Gemma-2")
    target = SimpleNamespace(
        params={},
        clip=lambda **_: SanaTextModel(loaded, compute, acceleration),
        tokenizer=lambda **_: SanaTokenizer(loaded.tokenizer),
    )
    parameters = comfy.model_management.module_size(loaded.module) // compute.itemsize
    clip = SanaCLIP(target, parameters=parameters, model_options={"dtype": compute, **options}, **more)
    clip.patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, patch_other_layers)
    set_reload(clip.patcher, _reload, loaded.path, weight_dtype, device, products)
    return clip


def _reload(path, weight_dtype: str, device: str, products: str, disable_dynamic: bool = False):
    """The patcher of build_clip of the file once more."""
    return build_clip(load_text_encoder(path), weight_dtype, device, products, disable_dynamic=disable_dynamic).patcher


def encode_prompts(clip, wanted: Sequence[prompts.Prompt]) -> list[list]:
    """CONDITIONING of each prompt by a CLIP of ours. The first call computes all; the others find theirs kept."""
    if not isinstance(getattr(clip, "tokenizer", None), SanaTokenizer):
        kind = type(getattr(clip, "tokenizer", clip)).__name__
        raise ValueError(
            f"this CLIP ({kind}) is not SANA's Gemma-2: load it with Sana Load Text Encoder or Sana Load Pipeline"
            f"{CORE_GEMMA if kind in CORE_GEMMA_TOKENIZERS else ''}"
        )
    plain = not (clip.patcher.patches or clip.patcher.forced_hooks or clip.apply_hooks_to_conds)
    made = [clip.tokenize(**vars(prompt)) for prompt in wanted]
    for tokens in made:
        tokens[PLAIN] = plain
    made[0][SOON] = [_prompt_of(tokens) for tokens in made[1:]]
    return [clip.encode_from_tokens_scheduled(tokens) for tokens in made]


def _prompt_of(tokens: dict) -> prompts.PromptTokens:
    return prompts.PromptTokens(tuple(pair[0] for pair in tokens[IDS][0]), tokens[FIRST_KEPT])
