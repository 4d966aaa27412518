"""Models, prompts, samplers and autoencoders on one device, one of them at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from ...model_loaders import dtypes, prompts
from ...model_loaders.text_encoder import LoadedTextEncoder, TextEncoderSpec, encode_tokens
from ...model_loaders.transformer import (
    DEFAULT_GUIDANCE,
    LoadedTransformer,
    TransformerSpec,
    network_inputs,
    require_sprint,
)
from ...model_loaders.vae import LoadedVae, VaeSpec
from ...samplers.trigflow import TrigFlow
from . import progress


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


CASTING = {torch.nn.Linear: CastingLinear, torch.nn.Conv2d: CastingConv2d}


class _Resident:
    """The one module that is on the device; the others wait on the CPU."""

    module: torch.nn.Module | None = None


def _bring(module: torch.nn.Module, place: torch.device) -> None:
    if place.type == "cpu" or _Resident.module is module:
        return
    if _Resident.module is not None:
        _Resident.module.to("cpu")
    _Resident.module = module.to(place)


def _adapted(module, wanted, place) -> torch.dtype:
    compute = compute_dtype(wanted or dtypes.stored_dtype(module), place)
    dtypes.adapt(module, CASTING, wanted, compute)
    return compute


@dataclass(frozen=True)
class Model:
    """MODEL: a network and its parameterisation."""

    module: torch.nn.Module
    spec: TransformerSpec
    sampling: torch.nn.Module
    dtype: torch.dtype
    device: torch.device


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
        _bring(self.module, self.device)
        states = encode_tokens(self.module, tokens, self.device).to("cpu", torch.float32)
        return [[states, {"pooled_output": None}]]


@dataclass(frozen=True)
class Vae:
    """VAE: an autoencoder in pictures of [B, H, W, 3] in [0, 1] and the transformer's latents."""

    module: torch.nn.Module
    spec: VaeSpec
    dtype: torch.dtype
    device: torch.device

    @torch.no_grad()
    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        if samples.ndim != 4 or samples.shape[1] != self.spec.latent_channels:
            raise ValueError(
                f"the latent has the shape {list(samples.shape)} and this VAE (DC-AE) takes "
                f"{self.spec.latent_channels} channels: decode it with the VAE of the model that made it"
            )
        _bring(self.module, self.device)
        samples = samples.to(self.device, self.dtype) / self.spec.scale
        pixels = self.module.decode(samples, return_dict=False)[0].to("cpu", torch.float32)
        return ((pixels + 1.0) / 2.0).clamp(0.0, 1.0).movedim(1, -1)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Sides that the ratio does not divide are cropped in the middle, as in ComfyUI."""
        _bring(self.module, self.device)
        pixels = self._cropped(pixels)[..., :3].movedim(-1, 1).to(self.device, self.dtype) * 2.0 - 1.0
        return self.module.encode(pixels, return_dict=False)[0].to("cpu", torch.float32) * self.spec.scale

    def _cropped(self, pixels: torch.Tensor) -> torch.Tensor:
        ratio = self.spec.spatial_ratio
        for dim in (1, 2):
            spare = pixels.shape[dim] % ratio
            if spare == pixels.shape[dim]:
                raise ValueError(f"the picture is {pixels.shape[dim]} pixels on a side; DC-AE needs at least {ratio}")
            pixels = pixels.narrow(dim, spare // 2, pixels.shape[dim] - spare)
        return pixels


@dataclass(frozen=True)
class Sampler:
    """SAMPLER: a function with k-diffusion's signature."""

    function: Callable
    options: dict = field(default_factory=dict)


def build_model(loaded: LoadedTransformer, weight_dtype: str) -> Model:
    require_sprint(loaded)
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.TRANSFORMER_DTYPES)
    compute = _adapted(loaded.module, wanted, device())
    return Model(loaded.module, loaded.spec, TrigFlow(), compute, device())


def build_clip(loaded: LoadedTextEncoder, weight_dtype: str, where: str) -> Clip:
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.TEXT_ENCODER_DTYPES)
    place = torch.device("cpu") if where == "cpu" else device()
    _adapted(loaded.module, wanted, place)
    return Clip(loaded.module, loaded.tokenizer, loaded.spec, place)


def build_vae(loaded: LoadedVae, weight_dtype: str) -> Vae:
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.VAE_DTYPES)
    compute = _adapted(loaded.module, wanted, device())
    return Vae(loaded.module, loaded.spec, compute, device())


def sample(model: Model, positive: list, latent: dict, noise, sigmas, function, seed: int, options: dict) -> dict:
    """Run a sampler function over a LATENT with the first conditioning; returns the LATENT with new ``samples``."""
    if len(positive) != 1:
        raise ValueError(f"the conditioning has {len(positive)} entries; the embedded host takes one: run with ComfyUI")
    if latent.get("noise_mask") is not None:
        raise ValueError("the latent has a noise mask; the embedded host does not inpaint yet: run with ComfyUI")
    _bring(model.module, model.device)
    denoise = _denoiser(model, *positive[0])
    sampling, sigmas = model.sampling, sigmas.to(model.device)
    samples = latent["samples"].to(model.device, torch.float32)
    steps = len(sigmas) - 1
    with progress.bar(steps, "sampling") as bar:
        x = sampling.noise_scaling(sigmas[0], noise.to(model.device), samples)
        x = function(denoise, x, sigmas, {"seed": seed}, lambda state: bar.update(), None, **options)
        x = sampling.inverse_noise_scaling(sigmas[-1], x)
    return {**latent, "samples": x.to("cpu", torch.float32)}


def _denoiser(model: Model, context: torch.Tensor, said: dict) -> Callable:
    """``denoise(x, sigma, seed)``, x0 of x_t, for one conditioning."""
    context = context.to(model.device, model.dtype)
    guidance = torch.tensor([float(said.get("guidance", DEFAULT_GUIDANCE))], device=model.device, dtype=model.dtype)

    @torch.no_grad()
    def denoise(x, sigma, seed=None):
        seen = model.sampling.calculate_input(sigma, x).to(model.dtype)
        time = model.sampling.timestep(sigma).float()
        out = model.module(**network_inputs(model.spec, seen, time, context, guidance))[0]
        return model.sampling.calculate_denoised(sigma, out.float(), x)

    return denoise
