"""The host's contract, answered without ComfyUI."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from ...media.prefixes import check_prefix
from ...model_loaders.files.kept import KeptTensors
from ...networks import accelerated, lora
from ..contract import listed
from . import control, progress, runtime, vae
from .folders import Folders

logger = logging.getLogger(__name__)


class EmbeddedHost:
    name = "embedded"

    def __init__(self, folders: Folders | None = None):
        self.folders = folders or Folders()

    def roots(self, kind: str) -> list[Path]:
        return self.folders.roots(kind)

    def model(self, loaded, weight_dtype, products="native"):
        return runtime.build_model(loaded, weight_dtype)

    def clip(self, loaded, weight_dtype, device="default", products="native"):
        disk = KeptTensors(self.folders.user / "sana-nodes" / "prompts")
        return runtime.build_clip(loaded, weight_dtype, device, disk)

    def vae(self, loaded, weight_dtype):
        return vae.build_vae(loaded, weight_dtype)

    def pair(self, model, vae_object, clip=None):
        """There are no live previews here."""

    def control_net(self, loaded, weight_dtype):
        return control.build_controlnet(loaded, weight_dtype)

    def weight_shapes(self, model):
        return {name: tuple(value.shape) for name, value in model.module.state_dict().items()}

    def apply_lora(self, model, loaded, strength):
        for layer in loaded.layers:
            lora.check_plain(loaded.parts(layer), layer)
        if message := loaded.unused_keys_message():
            logger.warning(message)
        return replace(model, loras=(*model.loras, (loaded, strength)))

    def apply_perturbation(self, model, perturbation):
        return replace(model, perturbation=perturbation)

    def compile(self, model, mode, vae_object=None):
        chosen = accelerated.accelerated(model.module, mode, model.device, model.spec.name)
        made = None if vae_object is None else vae_object.compiled(mode)
        return replace(model, acceleration=chosen), made

    def encode_prompts(self, clip, prompts):
        if not isinstance(clip, runtime.Clip):
            raise ValueError(
                f"this CLIP ({type(clip).__name__}) is not SANA's Gemma-2: load it with Sana Load Text Encoder"
            )
        return clip.conditions(prompts)

    def model_spec(self, model):
        return getattr(model, "spec", None)

    def flow_shift(self, model) -> float:
        return model.sampling.shift

    def describe_model(self, model) -> str:
        return type(model).__name__

    def empty_latent(self, shape):
        return torch.zeros(shape)

    def sampler(self, function, **options):
        return runtime.Sampler(function, options)

    def sample(
        self, model, positive, latent, noise, sigmas, function, seed, negative=None, cfg=1.0, steps=None, **options
    ):
        guidance = runtime.Guidance(positive, negative, cfg)
        return runtime.sample(model, guidance, latent, noise, sigmas, function, seed, options, steps)

    def vae_spec(self, vae_object):
        return vae_object.spec

    def decode_frames(self, vae_object, samples):
        return vae_object.frames(samples)

    def decode_stream(self, vae_object, blocks, total):
        return vae_object.stream(blocks, total)

    interrupts = (KeyboardInterrupt,)

    def saved_files(self, suffix, folder):
        return listed({"": self.folders.input, " [output]": self.folders.output}, suffix, folder)

    def check_prefix(self, prefix):
        check_prefix(prefix, Path(self.folders.output))

    def save_target(self, prefix, width, height):
        return self.folders.save_target(prefix, width, height)

    def shown(self, target, files, animated, small=None):
        return {"files" if small is not None else "images": [str(file) for file in files]}

    def underlay(self, image):
        return {}

    def video(self, images, fps, audio):
        return None

    def tags(self, prompt, extra_pnginfo):
        return self.folders.tags(prompt)

    def note(self, text):
        logger.warning(text)

    def status(self, text):
        if text:
            logger.info(text)

    def progress(self, total, what):
        return progress.bar(total, what)
