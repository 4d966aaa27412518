"""Models, prompts and samplers without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch.nn import functional

from ...model_loaders.lora import LoadedLora
from ...model_loaders.text_encoder import LoadedTextEncoder
from ...model_loaders.transformer import LoadedTransformer
from ...networks import lora, precision
from ...networks.accelerated import Acceleration, by_setting, called
from ...networks.families import TransformerSpec
from ...networks.fast_transformer import use_fast_transformer
from ...networks.latent_spaces import denormalise, normalise
from ...networks.long_video import cells_of, check_run, state_bytes
from ...networks.memory import transformer_memory
from ...networks.perturbed import Perturbation, attention_of
from ...networks.prompt_cache import Disk, PromptCache
from ...networks.prompts import Prompt
from ...networks.text_encoder import TextEncoderSpec, memory_of_tokens, use_fast_text_encoder
from ...networks.transformer import mask_of_times, network_inputs, padded_contexts, velocity
from ...samplers import goes_by_blocks
from ...samplers.block_causal import BLOCK, call_in, longest_block, prompt_of, start_of
from . import progress
from .devices import default_device, fits_free_memory, move_to_device, prepare


@dataclass(frozen=True)
class Model:
    """MODEL: a network, its parameterisation, LoRAs with their strengths, and perturbed-attention guidance."""

    module: torch.nn.Module
    spec: TransformerSpec
    sampling: torch.nn.Module
    dtype: torch.dtype
    device: torch.device
    loras: tuple[tuple[LoadedLora, float], ...] = ()
    perturbation: Perturbation | None = None
    acceleration: Acceleration | None = None


@dataclass(frozen=True)
class Clip:
    """CLIP: Gemma-2, its tokenizer, and what it need not compute again."""

    module: torch.nn.Module
    tokenizer: Any
    spec: TextEncoderSpec
    device: torch.device
    cache: PromptCache

    def conditions(self, prompts: Sequence[Prompt]) -> list[list]:
        """CONDITIONING of each prompt, states [1, L, width] in float32 on the CPU."""
        tokens = [prompt.tokens(self.tokenizer) for prompt in prompts]
        move_to_device(self.device, self.module, room=memory_of_tokens(self.spec, [len(t.ids) for t in tokens]))
        encoded = self.cache.encode_all(self.module, tokens, self.device)
        return [[[states.to("cpu", torch.float32), {"pooled_output": None}]] for states in encoded]


@dataclass(frozen=True)
class Sampler:
    """SAMPLER: a function with k-diffusion's signature."""

    function: Callable
    options: dict = field(default_factory=dict)


def build_model(loaded: LoadedTransformer, weight_dtype: str) -> Model:
    wanted = precision.parse_weight_dtype(weight_dtype, precision.TRANSFORMER_DTYPES)
    device = default_device()
    use_fast_transformer(loaded.module, loaded.spec.clips)
    dtype = prepare(loaded, wanted, device, loaded.spec.name)
    acceleration = by_setting(loaded.module, device, loaded.spec.name)
    return Model(loaded.module, loaded.spec, loaded.spec.sampling(), dtype, device, acceleration=acceleration)


def build_clip(loaded: LoadedTextEncoder, weight_dtype: str, where: str, disk: Disk | None = None) -> Clip:
    """``disk`` keeps what is computed of an instruction for the next start."""
    wanted = precision.parse_weight_dtype(weight_dtype, precision.TEXT_ENCODER_DTYPES)
    device = torch.device("cpu") if where == "cpu" else default_device()
    prepare(loaded, wanted, device, "SANA's Gemma-2")
    use_fast_text_encoder(loaded.module)
    cache = PromptCache(loaded.spec.new_cache, disk, by_setting(loaded.module, device, "SANA's Gemma-2"))
    return Clip(loaded.module, loaded.tokenizer, loaded.spec, device, cache)


WORDS = "sana_words"
"""In a conditioning of several rows [B, L, width]: the mask [B, L] of their tokens, 0 where a shorter one is padded."""


@dataclass(frozen=True)
class Guidance:
    """The conditioning of a run: the prompt, and with ``cfg`` above 1 also what to lead away from."""

    positive: list
    negative: list | None = None
    cfg: float = 1.0

    def controls(self) -> set:
        """The ControlNets in its conditionings, each once."""
        entries = [*self.positive, *(self.negative or [])]
        return {control for _, options in entries for control in options.get("control", ())}


@contextmanager
def _with_loras(model: Model):
    """The LoRAs of a MODEL in its weights, which are put back afterwards."""
    kept: dict[torch.nn.Parameter, torch.Tensor] = {}
    try:
        for loaded, strength in model.loras:
            for layer in loaded.layers:
                weight = model.module.get_parameter(f"{layer}.weight")
                kept.setdefault(weight, weight.data)
                floating = precision.floating_weight(model.module.get_submodule(layer), model.dtype)
                weight.data = lora.patched(floating, loaded.parts(layer), strength)
        yield
    finally:
        for weight, before in kept.items():
            weight.data = before


def sample(
    model: Model, guidance: Guidance, latent: dict, noise, sigmas, function, seed: int, options: dict, steps=None
) -> dict:
    """Run a sampler function over a LATENT with the first conditioning; returns the LATENT with new ``samples``.

    ``steps``: how many the function tells, if there are others than between ``sigmas``.
    """
    mask = latent.get("noise_mask")
    if mask is not None and not bool((mask < 1).any()):  # asked before it is on the device: nothing waits there
        mask = None
    _check_blocks(model, guidance, mask, function)
    samples = _normalised(model.spec, latent["samples"].to(torch.float32)).to(model.device)
    hints = {control: control.hint(samples) for control in guidance.controls()}
    networks, shape = (model.module, *(control.net.module for control in hints)), latent["samples"].shape
    blocks = model.spec.family.block_causal
    room = _block_bytes(model, guidance, shape, options) if blocks else step_bytes(model, guidance, shape, mask)
    move_to_device(model.device, *networks, room=room)
    mask = None if mask is None else _resized_mask(mask.to(model.device, torch.float32), samples)
    times = mask if mask is None or not model.spec.family.video else mask_of_times(mask)
    denoise = _guided(model, guidance, samples.shape, times, hints)
    denoise = denoise if mask is None else _holding(denoise, model, samples, noise.to(model.device), mask)
    sampling, sigmas = model.sampling, sigmas.to(model.device)
    with _with_loras(model), progress.bar(steps or len(sigmas) - 1, "sampling") as bar:
        x = sampling.noise_scaling(sigmas[0], noise.to(model.device), samples)
        extra = {"seed": seed, "denoise_mask": mask}
        x = function(denoise, x, sigmas, extra, lambda state: bar.update(state["i"] + 1 - bar.n), None, **options)
        x = sampling.inverse_noise_scaling(sigmas[-1], x)
    return {**latent, "samples": denormalise(model.spec.space, x).to("cpu", torch.float32)}


def _check_blocks(model: Model, guidance: Guidance, mask, function) -> None:
    """ValueError where a long video is asked for of another model, or what does not go with one."""
    others = [
        *(["a ControlNet"] if guidance.controls() else []),
        *(["a noise mask (image to video)"] if mask is not None else []),
        *(["Sana PAG"] if model.perturbation is not None else []),
    ]
    check_run(model.spec, goes_by_blocks(function), guidance.cfg, others)


def _normalised(spec: TransformerSpec, samples: torch.Tensor) -> torch.Tensor:
    """A LATENT as the transformer sees it; an empty one stays empty, as in ComfyUI."""
    return normalise(spec.space, samples) if samples.count_nonzero() else samples


def _resized_mask(mask: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """A noise mask at the latent's size: [B or 1, 1, ...] (comfy.utils.reshape_mask)."""
    dims = samples.ndim - 2
    if mask.ndim < samples.ndim:
        shape = (-1, 1) if dims == 2 else (1, 1, -1)
        mask = mask.reshape(*shape, *mask.shape[-2:])
    if mask.shape[2:] == samples.shape[2:]:
        return mask
    return functional.interpolate(mask, size=samples.shape[2:], mode="bilinear" if dims == 2 else "trilinear")


def _holding(denoise: Callable, model: Model, samples, noise, mask) -> Callable:
    """A denoiser that keeps the latent where the mask is 0 (ComfyUI's KSamplerX0Inpaint)."""

    def denoise_free_part(x, sigma, **given):
        known = samples if model.spec.family.video else model.sampling.mix(sigma, noise, samples)
        return denoise(x * mask + known * (1 - mask), sigma, **given) * mask + samples * (1 - mask)

    return denoise_free_part


def _guided(model: Model, guidance: Guidance, shape, mask, hints: dict) -> Callable:
    """``denoise(x, sigma, seed, denoise_mask)``, x0 of x_t, with the guidance that is asked for."""
    if model.spec.family.block_causal:
        return _denoiser_of_blocks(model, guidance.positive)
    predict = _predictions(model, guidance, shape, mask, hints)
    perturbation = model.perturbation
    perturbed = None
    if perturbation is not None:
        without = replace(model, perturbation=perturbation.perturbed())
        perturbed = _denoiser(without, _condition(model, guidance.positive), mask, hints)

    def denoise(x, sigma, **_):
        towards, away = predict(x, sigma)
        out = towards if away is None else away + (towards - away) * guidance.cfg
        return out if perturbed is None else out + (towards - perturbed(x, sigma)) * perturbation.scale

    return denoise


def _predictions(model: Model, guidance: Guidance, shape, mask, hints: dict) -> Callable:
    """``predict(x, sigma)``: x0 of x_t for the prompt, and for what to lead away from or None.

    Both conditionings are one batch where a card has memory for a latent ``shape`` [B, C, ...] of twice the size.
    Otherwise they are computed one after the other: on a processor that takes half the memory and no more time.
    """
    towards = _condition(model, guidance.positive)
    if guidance.negative is None or guidance.cfg == 1.0:
        alone = _denoiser(model, towards, mask, hints)
        return lambda x, sigma: (alone(x, sigma), None)
    away = _condition(model, guidance.negative)
    if not hints and fits_free_memory(model.device, _bytes_of_both(model, towards, away, shape, mask)):
        return _denoiser_of_both(model, towards, away, mask)
    denoisers = [_denoiser(model, condition, mask, hints) for condition in (towards, away)]
    return lambda x, sigma: tuple(each(x, sigma) for each in denoisers)


@dataclass(frozen=True)
class Condition:
    """A conditioning on the model's device: ``context`` [n, L, width], ``guidance`` [n], and AppliedControls.

    ``n`` is 1, or the latents of several rows that are sampled together; ``words`` [n, L] is 0 where a shorter prompt
    of those is padded.
    """

    context: torch.Tensor
    guidance: torch.Tensor
    controls: tuple
    words: torch.Tensor | None = None

    def of(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Context, words and guidance of ``count`` latents."""
        parts = (self.context, self.words, self.guidance)
        context, words, guidance = (p if p is None or len(p) == count else p.repeat_interleave(count, 0) for p in parts)
        return context, words, guidance


def _condition(model: Model, conditioning: list) -> Condition:
    if len(conditioning) != 1:
        raise ValueError(
            f"the conditioning has {len(conditioning)} entries; the embedded host takes one: run with ComfyUI"
        )
    context, options = conditioning[0]
    scale = options.get("guidance", model.spec.family.guidance_scale)
    scales = scale if isinstance(scale, list) else [float(scale)]
    guidance = torch.tensor(scales, device=model.device, dtype=model.dtype)
    words = options.get(WORDS)
    words = None if words is None else words.to(model.device, model.dtype)
    return Condition(context.to(model.device, model.dtype), guidance, tuple(options.get("control", ())), words)


@torch.no_grad()
def _x0(model: Model, x, sigma, **given) -> torch.Tensor:
    """x0 of x_t by one call of the network; ``given``: what network_inputs takes beside x_t and the time.

    ``sigma`` [B], or [1] for all samples.
    """
    scaled = model.sampling.calculate_input(sigma, x).to(model.dtype)
    inputs = network_inputs(model.spec, scaled, model.sampling.timestep(sigma).float(), **given)
    with attention_of(model.module, model.perturbation):
        output = velocity(model.spec, called(model.acceleration, model.module, inputs))
    return model.sampling.calculate_denoised(sigma, output.float(), x)


def _denoiser(model: Model, given: Condition, mask, hints: dict) -> Callable:
    """x0 of x_t for one conditioning; ``hints``: the latent that leads each of its ControlNets."""
    kept: dict = {}  # of the prompt, for the steps of this run

    @torch.no_grad()
    def denoise(x, sigma, **_):
        parts = [c.residuals(model.sampling, x, sigma, given.context, hints[c]) for c in given.controls]
        added = [sum(part).to(model.dtype) for part in _aligned(parts)]
        inputs = {"context": given.context, "guidance": given.guidance, "mask": mask, "control": added, "kept": kept}
        return _x0(model, x, sigma, context_mask=given.words, **inputs)

    return denoise


def _denoiser_of_blocks(model: Model, prompts: list) -> Callable:
    """x0 of x_t for the block of a long video that a sampler's BlockCall names, with the prompt of that block."""
    conditions = [_condition(model, [prompt]) for prompt in prompts]
    starts = [start_of(options, model.spec.frame_ratio) for _, options in prompts]

    def denoise(x, sigma, model_options=None, **_):
        block = call_in((model_options or {}).get("transformer_options"))
        given = conditions[prompt_of(starts, block)]
        return _x0(model, x, sigma, context=given.context, block=block)

    return denoise


def _denoiser_of_both(model: Model, towards: Condition, away: Condition, mask) -> Callable:
    """x0 of x_t for two conditionings by one call of the network; a shorter prompt is padded, with a mask."""
    kept: dict = {}  # of both prompts, for the steps of this run

    def denoise(x, sigma, **_):
        count = len(x)
        contexts, masks, scales = zip(towards.of(count), away.of(count))
        context, words = padded_contexts(contexts, masks)
        each = {"context": context, "context_mask": words, "guidance": torch.cat(scales)}
        both = sigma.expand(1) if count == 1 else sigma.expand(count).repeat(2)
        twice = mask if mask is None or count == 1 else torch.cat([mask.expand(count, *mask.shape[1:])] * 2)
        return _x0(model, x.repeat(2, *[1] * (x.ndim - 1)), both, mask=twice, kept=kept, **each).chunk(2)

    return denoise


def _bytes_of_both(model: Model, towards: Condition, away: Condition, shape, mask) -> int:
    longest = max(condition.context.shape[1] for condition in (towards, away))
    return _call_bytes(model, (2 * shape[0], *shape[1:]), longest, mask)


def step_bytes(model: Model, guidance: Guidance, shape, mask=None) -> int:
    """What one call of the network takes beside its weights, for one of the conditionings."""
    longest = max(states.shape[1] for states, _ in (*guidance.positive, *(guidance.negative or ())))
    return _call_bytes(model, shape, longest, mask)


def _block_bytes(model: Model, guidance: Guidance, shape, options: dict) -> int:
    """The same of a long video, of which a call has one block, and its state."""
    longest = longest_block(shape[2], options.get("block_frames", BLOCK))
    config, cached = model.module.config, options.get("cached_blocks", 0)
    kept = state_bytes(config, shape[0], cells_of(config, shape), model.dtype.itemsize, cached)
    return kept + step_bytes(model, guidance, (*shape[:2], longest, *shape[3:]), None)


def _call_bytes(model: Model, shape, tokens: int, mask) -> int:
    memory = transformer_memory(model.module, model.spec.patch)
    return memory.step(shape, model.dtype.itemsize, tokens, model.spec.family.video and mask is not None)


def _aligned(parts: list[list]) -> list[list]:
    """What several ControlNets add, block by block; a shorter one adds nothing at the end."""
    return [[p for p in at_block if p is not None] for at_block in zip_longest(*parts)]
