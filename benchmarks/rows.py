"""What benchmarks/run.py compares: the pack and diffusers at the same work on the same random weights.

A Case holds three calls: the pack through its embedded host, diffusers as its pipelines call it in bfloat16, and
diffusers in float32 over the same bfloat16 weights, against which both are held. ``index`` counts the calls: a row
may encode another prompt each time.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from memory import CONFIGS, VAES
from sana_nodes.host.embedded import runtime, vae
from sana_nodes.host.embedded.devices import CASTING, default_device
from sana_nodes.model_loaders.files.kept import KeptTensors
from sana_nodes.model_loaders.gemma_config import GEMMA_2_2B
from sana_nodes.model_loaders.text_encoder import LoadedTextEncoder
from sana_nodes.model_loaders.transformer import LoadedTransformer, spec_of
from sana_nodes.model_loaders.vae import LoadedVae
from sana_nodes.networks import precision, prompts
from sana_nodes.networks.autoencoder import to_autoencoder
from sana_nodes.networks.families import IMAGE, SPRINT, VIDEO, Family
from sana_nodes.networks.prompt_cache import PromptCache
from sana_nodes.networks.text_encoder import TextEncoderSpec, TokenEmbedding
from sana_nodes.networks.transformer import network_inputs
from sana_nodes.samplers import SAMPLERS

DEVICE = default_device()
CAPTIONS = 300
"""Tokens to which diffusers pads a prompt."""

GEMMA = {
    **{key: value for key, value in GEMMA_2_2B.items() if key != "model_type"},
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True)
class Case:
    """Three ways to one result; ``weights``: bytes of them, which each way reads once at least."""

    ours: Callable[[int], torch.Tensor]
    theirs: Callable[[int], torch.Tensor]
    exact: Callable[[int], torch.Tensor]
    weights: int
    modules: tuple[torch.nn.Module, ...] = ()
    """What diffusers' way calls: to be compiled in place."""


def filled(make: Callable[[], torch.nn.Module], seed: int = 0) -> torch.nn.Module:
    """A module in bfloat16 on the device, with random weights of the size that keeps activations near 1."""
    with torch.device("meta"):
        module = make().eval().requires_grad_(False).to(torch.bfloat16)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(part, name, torch.zeros_like(buffer, device=DEVICE))
        if type(part).__name__ == "WanRotaryPosEmbed":
            part.__init__(part.attention_head_dim, part.patch_size, part.max_seq_len)
            part.to(DEVICE)
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)).to(DEVICE, torch.bfloat16)
    for name, parameter in list(module.named_parameters()):
        owner = module.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(_values(parameter, block), requires_grad=False))
    return module


def _values(parameter: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Norms stay near 1, biases small; a matrix or kernel has the standard deviation 1 / sqrt(fan in)."""
    size = parameter.numel()
    values = block.repeat(-(-size // len(block)))[:size].view(parameter.shape)
    if parameter.ndim < 2:
        return values * 0.02 + 1.0
    return values * float(parameter[0].numel()) ** -0.5


def shared(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module over the same weights: what becomes of its layers does not touch the original's."""
    same = {id(p): torch.nn.Parameter(p.data, requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, same)


def in_float32(module: torch.nn.Module) -> torch.nn.Module:
    return precision.use_casting_layers(shared(module), CASTING, None, torch.float32)


def size_of(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.itemsize for p in module.parameters())


@dataclass(frozen=True)
class Size:
    """``small``: tiny models, for a test of the benchmark itself. ``layers``: published widths, so many layers."""

    small: bool = False
    layers: int | None = None


def published(name: str, size: Size) -> torch.nn.Module:
    import diffusers

    kind, config = CONFIGS[name]
    if size.small:
        config = {**config, **SMALL[kind]}
    if size.layers and "Transformer" in kind:
        config = {**config, "num_layers": size.layers}
    return filled(lambda: getattr(diffusers, kind)(**config))


HEADS = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "num_cross_attention_heads": 2}
HEADS |= {"cross_attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 48}
WIDTHS = (8, 8, 16, 16, 32, 32)
SMALL = {
    "SanaTransformer2DModel": HEADS,
    "SanaVideoTransformer3DModel": {**HEADS, "attention_head_dim": 24, "num_attention_heads": 4},
    "AutoencoderDC": {
        "encoder_block_out_channels": WIDTHS,
        "decoder_block_out_channels": WIDTHS,
        "attention_head_dim": 8,
    },
    "AutoencoderKLWan": {"base_dim": 8, "num_res_blocks": 1},
    "AutoencoderKLLTX2Video": {
        "block_out_channels": (8, 16, 32, 32),
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1, 2, 1, 1, 1),
        "decoder_layers_per_block": (2, 1, 2, 1),
    },
}
SMALL["SanaVideoTransformer3DModel"] |= {"cross_attention_dim": 96, "cross_attention_head_dim": 48}
SMALL_GEMMA = {"vocab_size": 999, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
SMALL_GEMMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class Words:
    """A tokenizer of words and signs: about as many tokens as Gemma-2's has."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        return [2, *(3 + sum(map(ord, word)) * 31 % (self.vocabulary - 3) for word in re.findall(r"\w+|[^\w\s]", text))]

    def __call__(self, text: str, max_length: int, **_):
        return SimpleNamespace(input_ids=self.encode(text)[:max_length])


def prompt_number(index: int) -> str:
    return f"{index} " + " ".join(f"word{n * (index + 1)}" for n in range(29))


def prompt_case(size: Size, after_a_start: bool = False) -> Case:
    """Another prompt at each call; ``after_a_start``: the pack has what it keeps on disk alone."""
    from transformers import DynamicCache, Gemma2Config, Gemma2Model

    config = Gemma2Config(**{**GEMMA, **(SMALL_GEMMA if size.small else {})})
    config.num_hidden_layers = size.layers or config.num_hidden_layers
    config.layer_types = config.layer_types[: config.num_hidden_layers]
    module = filled(lambda: Gemma2Model(config))
    for part in module.modules():
        if type(part).__name__ == "Gemma2RotaryEmbedding":
            part.__init__(config)
        if hasattr(part, "embed_scale"):
            part.embed_scale = torch.tensor(config.hidden_size**0.5, dtype=torch.bfloat16)
    module.to(DEVICE)
    wide = in_float32(_as_loaded(shared(module)))
    tokenizer = Words(config.vocab_size)
    spec = TextEncoderSpec(config.hidden_size, config.num_hidden_layers, config.vocab_size, DynamicCache)
    loaded = LoadedTextEncoder(_as_loaded(shared(module)), tokenizer, spec, Path())
    folder = TemporaryDirectory()
    clip = runtime.build_clip(loaded, "default", "default", KeptTensors(Path(folder.name)))

    def ours(index: int) -> torch.Tensor:
        used = replace(clip, cache=PromptCache(DynamicCache, clip.cache.disk)) if after_a_start else clip
        return used.conditions([prompts.Prompt(prompt_number(index))])[0][0][0]

    ours.folder = folder  # removed with the case

    def plain(used: torch.nn.Module, index: int) -> torch.Tensor:
        tokens = prompts.tokenize_prompt(tokenizer, prompt_number(index), prompts.IMAGE_INSTRUCTION)
        padded = len(tokenizer.encode(prompts.IMAGE_INSTRUCTION)) + CAPTIONS - 2
        ids = torch.zeros(1, padded, dtype=torch.long, device=DEVICE)
        ids[0, : len(tokens.ids)] = torch.tensor(tokens.ids)
        states = used(ids, attention_mask=(torch.arange(padded, device=DEVICE) < len(tokens.ids)).long()[None])[0]
        return torch.cat([states[:, :1], states[:, tokens.first_kept : len(tokens.ids)]], dim=1).float().cpu()

    return Case(
        ours,
        partial(plain, module),
        partial(plain, wide),
        size_of(module) - size_of(module.embed_tokens),
        (module,),
    )


def _as_loaded(module: torch.nn.Module) -> torch.nn.Module:
    module.embed_tokens.__class__ = TokenEmbedding
    return module


@dataclass(frozen=True)
class Step:
    """One row of a transformer: one step from noise to x0 with prompts of so many tokens, of a latent's cells."""

    model: str
    family: Family
    cells: tuple[int, ...]
    cfg: float = 1.0
    tokens: tuple[int, int] = (30, 2)


def step_case(row: Step, size: Size) -> Case:
    """The prompt as diffusers has it: padded, with a mask; with guidance both prompts in one batch."""
    module = published(row.model, size)
    if size.small:
        row = replace(row, cells=tuple(min(cell, 4) for cell in row.cells))
    spec = spec_of(module.config, row.family)
    loaded = LoadedTransformer(shared(module), spec, Path())
    model = runtime.build_model(loaded, "default")
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, spec.latent_channels, *row.cells, generator=generator)
    states = [torch.randn(1, count, spec.caption_channels, generator=generator) for count in row.tokens]
    states = states if row.cfg != 1.0 else states[:1]
    conditioning = [[[state, {"pooled_output": None}]] for state in states]
    guidance = runtime.Guidance(conditioning[0], conditioning[1] if row.cfg != 1.0 else None, row.cfg)
    sampler = SAMPLERS["scm" if row.family is SPRINT else "euler"].function
    sigmas = torch.tensor([model.sampling.sigma_max, 0.0])

    def ours(index: int) -> torch.Tensor:
        latent = {"samples": torch.zeros_like(noise)}
        return runtime.sample(model, guidance, latent, noise, sigmas, sampler, 0, {})["samples"]

    context = torch.stack([torch.cat([s[0], s.new_zeros(CAPTIONS - s.shape[1], s.shape[2])]) for s in states])
    mask = torch.stack([torch.arange(CAPTIONS) < s.shape[1] for s in states])

    def plain(used: torch.nn.Module, dtype: torch.dtype, index: int) -> torch.Tensor:
        x = model.sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise)).to(DEVICE)
        sigma = sigmas[:1].to(DEVICE)
        seen = model.sampling.calculate_input(sigma, x).to(dtype).expand(len(states), *(-1,) * (x.ndim - 1))
        time = model.sampling.timestep(sigma).float().expand(len(states))
        scale = torch.tensor([row.family.guidance_scale], device=DEVICE, dtype=dtype)
        inputs = network_inputs(spec, seen, time, context.to(DEVICE, dtype), scale)
        out = used(**inputs, encoder_attention_mask=mask.to(DEVICE, dtype))[0][:, : spec.latent_channels].float()
        if row.cfg != 1.0:
            out = out[1:] + (out[:1] - out[1:]) * row.cfg
        return runtime.denormalise(spec.space, model.sampling.calculate_denoised(sigma, out, x)).cpu()

    exact = partial(plain, in_float32(module), torch.float32)
    return Case(ours, partial(plain, module, torch.bfloat16), exact, size_of(module), (module,))


def vae_case(name: str, half: str, shape: tuple[int, ...], size: Size) -> Case:
    """``shape``: a latent's cells to decode, or an image's pixels to encode."""
    module, spec = published(name, size), VAES[name]
    made = vae.build_vae(LoadedVae(shared(module), spec, Path()), "default")
    shape = tuple(min(side, 128 if half == "encode" else 4) for side in shape) if size.small else shape
    generator = torch.Generator().manual_seed(1)
    if half == "encode":
        given = torch.rand(1, *shape, 3, generator=generator)
        return Case(
            lambda index: made.encode(given),
            lambda index: _encoded(module, given, torch.bfloat16),
            partial(lambda used, index: _encoded(used, given, torch.float32), in_float32(module)),
            size_of(module.encoder),
            (module.encoder,),
        )
    latent = torch.randn(1, spec.latent_channels, *shape, generator=generator)
    raw = to_autoencoder(spec, latent)

    def plain(used: torch.nn.Module, dtype: torch.dtype, index: int) -> torch.Tensor:
        out = used.decode(raw.to(DEVICE, dtype), return_dict=False)[0].float().cpu()
        return (out / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    exact = partial(plain, in_float32(module), torch.float32)
    return Case(
        lambda index: made.decode(latent),
        partial(plain, module, torch.bfloat16),
        exact,
        size_of(module.decoder),
        (module.decoder,),
    )


def image_case(size: Size) -> Case:
    """A prompt, two steps of SANA-Sprint 0.6B and the decoding of 1024 x 1024 pixels, one after another."""
    made = [ROWS[name](size) for name in ("prompt", "sprint-0.6b-step", "dc-ae-decode")]

    def run(side: str, index: int) -> torch.Tensor:
        encode, step, decode = (getattr(case, side) for case in made)
        for call in (encode, step, step):
            call(index)
        return decode(index)

    modules = tuple(module for case in made for module in case.modules)
    return Case(
        *(partial(run, side) for side in ("ours", "theirs", "exact")), sum(case.weights for case in made), modules
    )


def _encoded(module: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    given = (images.movedim(-1, 1) * 2.0 - 1.0).to(DEVICE, dtype)
    return module.encode(given, return_dict=False)[0].float().cpu()


ROWS: dict[str, Callable[[Size], Case]] = {
    "prompt": prompt_case,
    "prompt-after-start": partial(prompt_case, after_a_start=True),
    "sprint-0.6b-step": partial(step_case, Step("Sprint 0.6B", SPRINT, (32, 32))),
    "sprint-1.6b-step": partial(step_case, Step("Sprint 1.6B", SPRINT, (32, 32))),
    "sana-1.6b-step-cfg": partial(step_case, Step("Sana 1.6B", IMAGE, (32, 32), 4.5)),
    "video-2b-step-cfg": partial(step_case, Step("SANA-Video 480p", VIDEO, (2, 30, 52), 6.0)),
    "dc-ae-decode-512": partial(vae_case, "DC-AE", "decode", (16, 16)),
    "dc-ae-decode": partial(vae_case, "DC-AE", "decode", (32, 32)),
    "dc-ae-encode": partial(vae_case, "DC-AE", "encode", (1024, 1024)),
    "wan-decode": partial(vae_case, "Wan 2.1 VAE", "decode", (2, 30, 52)),
    "image": image_case,
    "ltx2-decode": partial(vae_case, "LTX-2 video VAE", "decode", (2, 8, 14)),
}
"""The table: a name, and what makes its case at a size."""
