"""The host's contract, answered without ComfyUI."""

from __future__ import annotations

from pathlib import Path

import torch

from . import runtime
from .folders import Folders


class EmbeddedHost:
    name = "embedded"

    def __init__(self, folders: Folders | None = None):
        self.folders = folders or Folders()

    def roots(self, kind: str) -> list[Path]:
        return self.folders.roots(kind)

    def model(self, loaded, weight_dtype):
        return runtime.build_model(loaded, weight_dtype)

    def clip(self, loaded, weight_dtype, device="default"):
        return runtime.build_clip(loaded, weight_dtype, device)

    def vae(self, loaded, weight_dtype):
        return runtime.build_vae(loaded, weight_dtype)

    def encode_prompt(self, clip, prompt, *, instruction, max_sequence_length, clean_caption):
        if not isinstance(clip, runtime.Clip):
            raise ValueError(
                f"this CLIP ({type(clip).__name__}) is not SANA's Gemma-2: load it with SanaLoadTextEncoder"
            )
        return clip.condition(prompt, instruction, max_sequence_length, clean_caption)

    def model_spec(self, model):
        return getattr(model, "spec", None)

    def describe_model(self, model) -> str:
        return type(model).__name__

    def empty_latent(self, shape):
        return torch.zeros(shape)

    def sampler(self, function):
        return runtime.Sampler(function)

    def sample(self, model, positive, latent, noise, sigmas, function, seed, **options):
        return runtime.sample(model, positive, latent, noise, sigmas, function, seed, options)
