"""The host's contract, answered by ComfyUI."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import comfy.cli_args
import comfy.model_management
import comfy.samplers
import comfy.utils
import folder_paths
import torch

from ...media.prefixes import check_prefix
from ...model_loaders.files.folders import demo_roots
from ..contract import SaveTarget, listed
from . import clip, compiling, controlnet, editor, guidance, lora, model, pairs, patches, sampling, vae


class ComfyHost:
    name = "comfyui"

    def roots(self, kind: str) -> list[Path]:
        return [*(Path(root) for root in folder_paths.get_folder_paths(kind)), *demo_roots(kind)]

    def model(self, loaded, weight_dtype, products="native"):
        return model.build_model(loaded, weight_dtype, products)

    def clip(self, loaded, weight_dtype, device="default", products="native"):
        return clip.build_clip(loaded, weight_dtype, device, products)

    def vae(self, loaded, weight_dtype):
        return vae.build_vae(loaded, weight_dtype)

    def pair(self, patcher, vae_object, clip_object=None):
        pairs.pair(patcher.model, vae_object, clip_object)

    def control_net(self, loaded, weight_dtype):
        return controlnet.build_controlnet(loaded, weight_dtype)

    def weight_shapes(self, patcher):
        return lora.network_shapes(patcher)

    def apply_lora(self, patcher, loaded, strength):
        return lora.apply_lora(patcher, loaded, strength)

    def apply_perturbation(self, patcher, perturbation):
        return guidance.apply_perturbation(patcher, perturbation)

    def compile(self, patcher, mode, vae_object=None):
        made = None if vae_object is None else compiling.compiled_vae(vae_object, mode)
        return compiling.compiled(patcher, mode), made

    def encode_prompts(self, clip_object, prompts):
        return clip.encode_prompts(clip_object, prompts)

    def model_spec(self, patcher):
        return getattr(patcher.model, "sana_spec", None)

    def flow_shift(self, patcher) -> float:
        return patches.check_sampling(patcher).shift

    def describe_model(self, patcher) -> str:
        return type(patcher.model).__name__

    def empty_latent(self, shape):
        return torch.zeros(shape, device=comfy.model_management.intermediate_device())

    def sampler(self, function, **options):
        return comfy.samplers.KSAMPLER(function, options)

    def sample(
        self, model, positive, latent, noise, sigmas, function, seed, negative=None, cfg=1.0, steps=None, **options
    ):
        guider = sampling.guider(model, positive, negative, cfg)
        return sampling.sample(guider, latent, noise, sigmas, function, seed, options, steps)

    def vae_spec(self, vae_object):
        return vae.spec_of(vae_object)

    def decode_frames(self, vae_object, samples):
        return vae.decode_frames(vae_object, samples)

    def decode_stream(self, vae_object, blocks, total):
        return vae.decode_stream(vae_object, blocks, total)

    @property
    def interrupts(self):
        return (comfy.model_management.InterruptProcessingException, KeyboardInterrupt)

    def saved_files(self, suffix, folder):
        folders = {"": folder_paths.get_input_directory(), " [output]": folder_paths.get_output_directory()}
        return listed(folders, suffix, folder)

    def check_prefix(self, prefix):
        output = Path(folder_paths.get_output_directory())
        check_prefix(prefix, output)
        folder = (output / prefix).parent
        within = getattr(folder_paths, "is_within_directory", None)  # ComfyUI 0.3.64 lets a link lead out
        if within is not None and not within(str(output), str(folder)):
            raise ValueError(f"filename_prefix is {prefix!r}, whose folder is a link that leads out of {output}")

    def save_target(self, prefix, width, height):
        output = folder_paths.get_output_directory()
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
        return SaveTarget(Path(folder), name, number, subfolder)

    def shown(self, target, files, animated, small=None):
        return editor.shown(target, files, animated, small)

    def underlay(self, image):
        return editor.underlay(image)

    def video(self, images, fps, audio):
        return editor.video(images, fps, audio)

    def tags(self, prompt, extra_pnginfo):
        if comfy.cli_args.args.disable_metadata:
            return {}
        return {**(extra_pnginfo or {}), **({"prompt": prompt} if prompt else {})}

    def note(self, text):
        editor.note(text)

    def status(self, text):
        editor.status(text)

    @contextmanager
    def progress(self, total, what):
        bar = comfy.utils.ProgressBar(total)

        def update(count=1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(count)

        yield SimpleNamespace(update=update)
