"""The host's contract, answered by ComfyUI."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.samplers
import folder_paths
import torch

from . import clip, model, sampling, vae


class ComfyHost:
    name = "comfyui"

    def roots(self, kind: str) -> list[Path]:
        return [Path(root) for root in folder_paths.get_folder_paths(kind)]

    def model(self, loaded, weight_dtype):
        return model.build_model(loaded, weight_dtype)

    def clip(self, loaded, weight_dtype, device="default"):
        return clip.build_clip(loaded, weight_dtype, device)

    def vae(self, loaded, weight_dtype):
        return vae.build_vae(loaded, weight_dtype)

    def encode_prompt(self, clip_object, prompt, *, instruction, max_sequence_length, clean_caption):
        return clip.encode_prompt(
            clip_object,
            prompt,
            instruction=instruction,
            max_sequence_length=max_sequence_length,
            clean_caption=clean_caption,
        )

    def model_spec(self, patcher):
        return getattr(patcher.model, "sana_spec", None)

    def describe_model(self, patcher) -> str:
        return type(patcher.model).__name__

    def empty_latent(self, shape):
        return torch.zeros(shape, device=comfy.model_management.intermediate_device())

    def sampler(self, function):
        return comfy.samplers.KSAMPLER(function)

    def sample(self, patcher, positive, latent, noise, sigmas, function, seed, **options):
        return sampling.sample(patcher, positive, latent, noise, sigmas, function, seed, options)
