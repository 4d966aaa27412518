"""Models, prompts, samplers and autoencoders on one device, one of them at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch.nn import functional

from ...model_loaders import dtypes, lora, prompts, streaming
from ...model_loaders.dc_ae_windows import WINDOW, Windows
from ...model_loaders.lora import LoadedLora
from ...model_loaders.text_encoder import LoadedTextEncoder, TextEncoderSpec, encode_tokens
from ...model_loaders.transformer import (
    DEFAULT_GUIDANCE,
    LoadedTransformer,
    TransformerSpec,
    network_inputs,
    velocity,
)
from ...model_loaders.vae import (
    LoadedVae,
    VaeSpec,
    from_autoencoder,
    latent_to_frames,
    to_autoencoder,
    too_small,
)
from ...model_loaders.wan_vae import MEAN, STD
from ...samplers.flow_match import FlowMatch
from ...samplers.trigflow import TrigFlow
from . import progress

logger = logging.getLogger(__name__)


def device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def compute_dtype(stored: torch.dtype, place: torch.device) -> torch.dtype:
    """bfloat16 where the device is made for it and the weights are no finer, else float32; never float16."""
    if stored == torch.float32 or place.type != "cuda" or not torch.cuda.is_bf16_supported():
        return torch.float32
    return torch.bfloat16


class CastingLinear(torch.nn.Linear):
    """A Linear stored in one dtype that computes in its input's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class CastingConv2d(torch.nn.Conv2d):
    """A Conv2d stored in one dtype that computes in its input's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class CastingConv3d(torch.nn.Conv3d):
    """A Conv3d stored in one dtype that computes in its input's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


CASTING = {torch.nn.Linear: CastingLinear, torch.nn.Conv2d: CastingConv2d, torch.nn.Conv3d: CastingConv3d}


class _Resident:
    """The modules that are on the device, one or those that work together; the others wait on the CPU."""

    modules: tuple[torch.nn.Module, ...] = ()


def _bring(place: torch.device, *modules: torch.nn.Module) -> None:
    if place.type == "cpu":
        return
    for module in _Resident.modules:
        if module not in modules:
            module.to("cpu")
    _Resident.modules = tuple(module.to(place) for module in modules)


def adapted(module, wanted, place) -> torch.dtype:
    """Make a module store ``wanted`` and compute in what suits the device, which is returned."""
    compute = compute_dtype(wanted or dtypes.stored_dtype(module), place)
    dtypes.adapt(module, CASTING, wanted, compute)
    return compute


@dataclass(frozen=True)
class Model:
    """MODEL: a network, its parameterisation, and LoRAs with their strengths."""

    module: torch.nn.Module
    spec: TransformerSpec
    sampling: torch.nn.Module
    dtype: torch.dtype
    device: torch.device
    loras: tuple[tuple[LoadedLora, float], ...] = ()


@dataclass(frozen=True)
class Clip:
    """CLIP: Gemma-2 and its tokenizer."""

    module: torch.nn.Module
    tokenizer: object
    spec: TextEncoderSpec
    device: torch.device

    def condition(self, prompt: str, instruction: str = prompts.IMAGE_INSTRUCTION, *limits) -> list:
        """CONDITIONING of a prompt, states [1, L, width] in float32 on the CPU; ``limits``: see tokenize_prompt."""
        tokens = prompts.tokenize_prompt(self.tokenizer, prompt, instruction, *limits)
        _bring(self.device, self.module)
        states = encode_tokens(self.module, tokens, self.device).to("cpu", torch.float32)
        return [[states, {"pooled_output": None}]]


@dataclass(frozen=True)
class Vae:
    """VAE: an autoencoder between LATENTs and pictures [B, H, W, 3] or videos [B, F, H, W, 3] in [0, 1]."""

    module: torch.nn.Module
    spec: VaeSpec
    dtype: torch.dtype
    device: torch.device

    @torch.no_grad()
    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        raw = to_autoencoder(self.spec, samples)
        if not self.spec.is_video:
            return _picture(self._fitting("decode", raw)).movedim(1, -1)
        frames = latent_to_frames(self.spec, samples.shape[2])
        sides = (side * self.spec.spatial_ratio for side in samples.shape[-2:])
        videos = torch.empty(samples.shape[0], frames, *sides, 3)
        for video, one in zip(videos, raw.split(1)):
            start = 0
            for piece in self._frames(one):
                video[start : start + len(piece)] = piece
                start += len(piece)
        return videos

    def frames(self, samples: torch.Tensor) -> Iterator[torch.Tensor]:
        """The frames of one video after another, a few at a time: [n, H, W, 3]."""
        raw = to_autoencoder(self.spec, samples)
        for one in raw.split(1):
            yield from self._frames(one)

    def _frames(self, raw: torch.Tensor) -> Iterator[torch.Tensor]:
        _bring(self.device, self.module)
        with progress.bar(raw.shape[2], "decoding") as bar:
            for piece in streaming.decode_pieces(self.module, self.spec, raw, self.device, self.dtype):
                yield _picture(piece[0]).movedim(0, -1)
                bar.update(min(streaming.PIECE, bar.total - bar.n))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Sides that the ratio does not divide are cropped in the middle, as in ComfyUI.

        A video VAE takes pictures [F, H, W, 3] for the frames of one video.
        """
        _bring(self.device, self.module)
        pixels = self._cropped(pixels[..., :3])
        if self.spec.is_video:
            videos = pixels if pixels.ndim == 5 else pixels[None]
            raw = streaming.encode_pieces(self.module, self.spec, videos, self.device, self.dtype)
        else:
            raw = self._fitting("encode", pixels.movedim(-1, 1) * 2.0 - 1.0)
        return from_autoencoder(self.spec, raw.to("cpu", torch.float32))

    def _fitting(self, half: str, given: torch.Tensor) -> torch.Tensor:
        """A picture autoencoder's ``encode`` or ``decode``, in windows where the whole does not fit into memory."""
        _bring(self.device, self.module)
        try:
            return getattr(self.module, half)(given.to(self.device, self.dtype), return_dict=False)[0]
        except torch.cuda.OutOfMemoryError:
            logger.warning("Out of memory: the picture is %sd once more, in windows of %d pixels.", half, WINDOW)
        torch.cuda.empty_cache()
        with progress.bar(1, f"{half[:-1]}ing in windows") as bar:

            def report(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return getattr(Windows(WINDOW, self.device, self.dtype, report), half)(self.module, given)

    def _cropped(self, pixels: torch.Tensor) -> torch.Tensor:
        ratio = self.spec.spatial_ratio
        for dim in (-3, -2):
            side = pixels.shape[dim]
            if side < ratio:
                raise ValueError(too_small(self.spec, side))
            pixels = pixels.narrow(dim, side % ratio // 2, side // ratio * ratio)
        return pixels


def _picture(pixels: torch.Tensor) -> torch.Tensor:
    """[-1, 1] on any device to [0, 1] in float32 on the CPU."""
    return pixels.to("cpu", torch.float32, copy=True).add_(1.0).div_(2.0).clamp_(0.0, 1.0)


@dataclass(frozen=True)
class Sampler:
    """SAMPLER: a function with k-diffusion's signature."""

    function: Callable
    options: dict = field(default_factory=dict)


def build_model(loaded: LoadedTransformer, weight_dtype: str) -> Model:
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.TRANSFORMER_DTYPES)
    compute = adapted(loaded.module, wanted, device())
    sampling = TrigFlow() if loaded.spec.family == "sprint" else FlowMatch(loaded.spec.flow_shift)
    return Model(loaded.module, loaded.spec, sampling, compute, device())


def build_clip(loaded: LoadedTextEncoder, weight_dtype: str, where: str) -> Clip:
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.TEXT_ENCODER_DTYPES)
    place = torch.device("cpu") if where == "cpu" else device()
    adapted(loaded.module, wanted, place)
    return Clip(loaded.module, loaded.tokenizer, loaded.spec, place)


def build_vae(loaded: LoadedVae, weight_dtype: str) -> Vae:
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.VAE_DTYPES)
    compute = adapted(loaded.module, wanted, device())
    return Vae(loaded.module, loaded.spec, compute, device())


@dataclass(frozen=True)
class Guidance:
    """What a run is led by: the prompt, and with ``cfg`` above 1 also what to lead away from."""

    positive: list
    negative: list | None = None
    cfg: float = 1.0

    def controls(self) -> set:
        """The ControlNets in its conditionings, each once."""
        entries = [*self.positive, *(self.negative or [])]
        return {control for _, said in entries for control in said.get("control", ())}


@contextmanager
def _with_loras(model: Model):
    """The LoRAs of a MODEL in its weights, which are put back afterwards."""
    kept = {}
    try:
        for loaded, strength in model.loras:
            for layer in loaded.layers:
                weight = model.module.get_parameter(f"{layer}.weight")
                kept.setdefault(weight, weight.data)
                fine = weight.data if weight.data.dtype.itemsize > 1 else weight.data.to(model.dtype)
                weight.data = lora.patched(fine, loaded, layer, strength)
        yield
    finally:
        for weight, before in kept.items():
            weight.data = before


def sample(model: Model, guidance: Guidance, latent: dict, noise, sigmas, function, seed: int, options: dict) -> dict:
    """Run a sampler function over a LATENT with the first conditioning; returns the LATENT with new ``samples``."""
    samples = _normalised(model.spec, latent["samples"].to(model.device, torch.float32))
    hints = {control: control.hint(samples) for control in guidance.controls()}
    _bring(model.device, model.module, *(control.net.module for control in hints))
    mask = latent.get("noise_mask")
    mask = None if mask is None else _fitted(mask.to(model.device, torch.float32), samples)
    denoise = _guided(model, guidance, mask, hints)
    denoise = denoise if mask is None else _holding(denoise, model, samples, noise.to(model.device), mask)
    sampling, sigmas = model.sampling, sigmas.to(model.device)
    with _with_loras(model), progress.bar(len(sigmas) - 1, "sampling") as bar:
        x = sampling.noise_scaling(sigmas[0], noise.to(model.device), samples)
        extra = {"seed": seed, "denoise_mask": mask}
        x = function(denoise, x, sigmas, extra, lambda state: bar.update(), None, **options)
        x = sampling.inverse_noise_scaling(sigmas[-1], x)
    return {**latent, "samples": _carried(model.spec, x).to("cpu", torch.float32)}


def _wan(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, -1, 1, 1, 1)
    return torch.tensor(MEAN, device=samples.device).view(shape), torch.tensor(STD, device=samples.device).view(shape)


def _normalised(spec: TransformerSpec, samples: torch.Tensor) -> torch.Tensor:
    """A LATENT as the transformer sees it; an empty one stays empty, as in ComfyUI."""
    if spec.family != "video" or spec.latent_channels != len(MEAN) or not samples.count_nonzero():
        return samples
    mean, std = _wan(samples)
    return (samples - mean) / std


def _carried(spec: TransformerSpec, samples: torch.Tensor) -> torch.Tensor:
    """What the transformer made, as a LATENT carries it."""
    if spec.family != "video" or spec.latent_channels != len(MEAN):
        return samples
    mean, std = _wan(samples)
    return samples * std + mean


def _fitted(mask: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """A noise mask at the latent's size: [B or 1, 1, ...] (comfy.utils.reshape_mask)."""
    dims = samples.ndim - 2
    if mask.ndim < samples.ndim:
        places = (-1, 1) if dims == 2 else (1, 1, -1)
        mask = mask.reshape(*places, *mask.shape[-2:])
    if mask.shape[2:] == samples.shape[2:]:
        return mask
    return functional.interpolate(mask, size=samples.shape[2:], mode="bilinear" if dims == 2 else "trilinear")


def _holding(denoise: Callable, model: Model, samples, noise, mask) -> Callable:
    """A denoiser that keeps the latent where the mask is 0 (ComfyUI's KSamplerX0Inpaint)."""

    def held(x, sigma, **given):
        known = samples if model.spec.family == "video" else model.sampling.mix(sigma, noise, samples)
        return denoise(x * mask + known * (1 - mask), sigma, **given) * mask + samples * (1 - mask)

    return held


def _guided(model: Model, guidance: Guidance, mask, hints: dict) -> Callable:
    """``denoise(x, sigma, seed, denoise_mask)``, x0 of x_t, with classifier-free guidance where it is asked for."""
    towards = _denoiser(model, guidance.positive, mask, hints)
    if guidance.negative is None or guidance.cfg == 1.0:
        return towards
    away = _denoiser(model, guidance.negative, mask, hints)

    def denoise(x, sigma, **given):
        unguided = away(x, sigma)
        return unguided + (towards(x, sigma) - unguided) * guidance.cfg

    return denoise


def _denoiser(model: Model, conditioning: list, mask, hints: dict) -> Callable:
    """x0 of x_t for one conditioning; ``hints``: the latent that leads each of its ControlNets."""
    if len(conditioning) != 1:
        raise ValueError(
            f"the conditioning has {len(conditioning)} entries; the embedded host takes one: run with ComfyUI"
        )
    context, said = conditioning[0]
    context = context.to(model.device, model.dtype)
    guidance = torch.tensor([float(said.get("guidance", DEFAULT_GUIDANCE))], device=model.device, dtype=model.dtype)

    @torch.no_grad()
    def denoise(x, sigma, **_):
        seen = model.sampling.calculate_input(sigma, x).to(model.dtype)
        time = model.sampling.timestep(sigma).float()
        parts = [c.residuals(model.sampling, x, sigma, context, hints[c]) for c in said.get("control", ())]
        added = [sum(part).to(model.dtype) for part in _aligned(parts)]
        out = velocity(
            model.spec, model.module(**network_inputs(model.spec, seen, time, context, guidance, mask, added))
        )
        return model.sampling.calculate_denoised(sigma, out.float(), x)

    return denoise


def _aligned(parts: list[list]) -> list[list]:
    """What several ControlNets add, block by block; a shorter one adds nothing at the end."""
    return [[p for p in at_block if p is not None] for at_block in zip_longest(*parts)]
