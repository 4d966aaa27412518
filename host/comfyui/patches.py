"""What other nodes ask of a MODEL: done where SANA's transformers can, refused in words where they cannot.

ComfyUI's nodes leave their wishes in a model's options, and a model reads those that it knows. Silence
would sample an image as if the node were not there.
"""

from __future__ import annotations

import comfy.model_sampling
import comfy.patcher_extension
import comfy.utils

from ...networks.families import TransformerSpec
from ...networks.latent_spaces import DC_AE
from ...samplers import SAMPLERS, flow_match, trigflow

SELF_ATTENTION = "self-attention (HyperTile, TomePatchModel, NAGuidance, HypernetworkLoader)"
CROSS_ATTENTION = "cross-attention (NAGuidance, HypernetworkLoader)"
INPUT_BLOCKS = "a UNet's input blocks (PatchModelAddDownscale)"
PLACES = {
    "attn1_patch": SELF_ATTENTION,
    "attn1_output_patch": SELF_ATTENTION,
    "attn2_patch": CROSS_ATTENTION,
    "attn2_output_patch": CROSS_ATTENTION,
    "input_block_patch": INPUT_BLOCKS,
    "input_block_patch_after_skip": INPUT_BLOCKS,
    "output_block_patch": "a UNet's output blocks (PatchModelAddDownscale)",
    "middle_patch": "a UNet's middle block (GLIGENTextBoxApply)",
}
REPLACED = {
    "attn1": "self-attention (SelfAttentionGuidance, PerturbedAttentionGuidance)",
    "attn2": "cross-attention",
    "dit": "whole blocks (SkipLayerGuidanceDiT, SkipLayerGuidanceSD3)",
}
OPTIONS = {
    "rope_options": "rotary positions (ScaleROPE)",
    "optimized_attention_override": "the attention function (ModelAttentionBackend)",
}
"""Names in transformer_options to what they change and which core nodes put them there."""

IMAGES = {
    "reference_latents": "a reference image (ReferenceLatent)",
    "unclip_conditioning": "an image from CLIP vision (unCLIPConditioning)",
}
"""Names in a CONDITIONING to what they bring."""

MISREAD = {"sample_ddpm", "sample_lcm_upscale"}
"""Core samplers that add noise as models other than flow matching have it."""


class NoUnet(dict):
    """A model config's ``unet_config`` that says what is wrong when a node looks for a UNet's measures in it."""

    def __missing__(self, name):
        raise ValueError(f"SANA's transformer is no UNet and has no {name}: take out the node that is made for one")

    def copy(self):
        return type(self)(self)


def refuse_patches(options: dict) -> None:
    """ValueError for a node that reaches into the transformer where SANA's has no such place."""
    asked = [PLACES.get(name, name) for name, patches in options.get("patches", {}).items() if patches]
    asked += [REPLACED.get(name, name) for name, new in options.get("patches_replace", {}).items() if new]
    asked += [what for name, what in OPTIONS.items() if options.get(name)]
    if asked:
        raise ValueError(
            f"a node wants to change {' and '.join(dict.fromkeys(asked))}, which SANA's transformer does not let "
            "it do: take that node out between the loader and the sampler"
        )


def refuse_images(conditioning: dict) -> None:
    """ValueError for a CONDITIONING that holds an image: SANA reads the prompt alone."""
    found = [what for name, what in IMAGES.items() if conditioning.get(name) is not None]
    if found:
        raise ValueError(f"the conditioning brings {' and '.join(found)}, which SANA cannot read: take that node out")
    if conditioning.get("concat_latent_image") is not None and conditioning.get("denoise_mask") is None:
        raise ValueError(
            "the conditioning brings a masked image (InpaintModelConditioning), for which SANA has no channels: "
            "turn its noise_mask on, so that the latent holds what is not to change"
        )


def watch(patcher, spec: TransformerSpec):
    """The patcher with a check before every run of a sampler, whichever node starts it. Returns it."""
    cell = (spec.space or DC_AE).cell

    def before(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        sampling = check_sampling(guider.model_patcher)
        check_sigmas(sampling, sigmas)
        check_sampler(sampling, getattr(sampler, "sampler_function", None))
        check_merged(guider.model_patcher)
        for prompts in guider.conds.values():  # the run's own copies
            for prompt in prompts:
                if prompt.get("area") is not None:
                    prompt["area"] = fitted_area(prompt["area"], noise.ndim - 2, cell)
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    patcher.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, before)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, patch_tables)
    return patcher


def patch_tables(patcher, device_to, *_) -> None:
    """Patch the weights that lie in blocks themselves (their modulation tables), which ComfyUI passes over.

    A MODEL is loaded to be saved as well, and then nothing else would look at what was merged.
    """
    check_merged(patcher)
    for key in patcher.patches:
        owner = comfy.utils.get_attr(patcher.model, key.rpartition(".")[0])
        inside = any(True for child in owner.children() for _ in child.parameters())
        if inside and key not in patcher.backup:
            patcher.patch_weight_to_device(key, device_to=device_to)


def fitted_area(area, dims: int, cell: int) -> tuple:
    """An area in a latent of ``dims`` dimensions (height and width, or time too), in cells of ``cell`` pixels.

    ConditioningSetArea counts 8 pixels a cell; shares of the whole come as ("percentage", …). Both are
    sizes and then starts, by dimension. Edges are rounded, not sizes, so that areas that touch still do.
    """
    if area[0] == "percentage":
        half = (len(area) - 1) // 2
        sizes, starts = area[1 : 1 + half][-dims:], area[1 + half :][-dims:]
        return ("percentage", *(1.0,) * (dims - half), *sizes, *(0.0,) * (dims - half), *starts)
    half = len(area) // 2
    sizes, starts = list(area[:half]), list(area[half:])
    for axis in (-1, -2):
        first, last = (int(edge * 8 / cell + 0.5) for edge in (starts[axis], starts[axis] + sizes[axis]))
        starts[axis], sizes[axis] = first, max(1, last - first)
    return (*sizes, *starts)


def check_sampling(patcher):
    """The MODEL's model_sampling; ValueError where a node gave it one that SANA was not trained with."""
    sampling = patcher.get_model_object("model_sampling")
    spec = patcher.model.sana_spec
    if isinstance(sampling, (trigflow.TrigFlow, flow_match.FlowMatch)):
        return sampling
    kind = type(sampling).__mro__[1].__name__  # the nodes build a class of their own on comfy's
    if spec.family.uses_angles:
        raise ValueError(
            f"SANA-Sprint's sigmas are angles: it cannot be sampled with {kind}. Take the ModelSampling node out; "
            "Sana SCM Sigmas sets the angles"
        )
    flow = isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow)
    if not flow or not isinstance(sampling, comfy.model_sampling.CONST) or sampling.multiplier != 1000:
        times = f" and times up to {sampling.multiplier:g}" if flow else ""
        raise ValueError(
            f"{spec.name} is sampled by flow matching with times up to 1000, not with {kind}{times}: "
            "take that node out, or use ModelSamplingSD3 to set the shift"
        )
    return sampling


def check_sigmas(sampling, sigmas) -> None:
    """ValueError for SIGMAS that are no angles of SANA-Sprint, or no noise levels of flow matching.

    The latter may rise, for a run that goes from an image to noise; the angles' sampler only falls.
    """
    if isinstance(sampling, trigflow.TrigFlow):
        trigflow.check_sigmas(sigmas)
    else:
        flow_match.check_range(sigmas)


def check_sampler(sampling, function) -> None:
    """ValueError for a sampler, of ComfyUI's or ours, that takes the MODEL's sigmas for something else.

    Other packs' samplers are their own business: many only call one of these.
    """
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", None) or ""
    core = module.split(".")[0] == "comfy" or "comfy_extras" in module
    if isinstance(sampling, trigflow.TrigFlow):
        if (core and name != "sample_lcm") or _own_parameterisation(function) is flow_match.FlowMatch:
            raise ValueError(
                f"SANA-Sprint's sigmas are angles, which {name.removeprefix('sample_')} takes for noise levels: "
                "choose the sampler lcm, or take Sana SCM Sample or Sana SCM Sampler"
            )
    elif _own_parameterisation(function) is trigflow.TrigFlow or name in MISREAD:
        raise ValueError(
            f"{name.removeprefix('sample_')} does not know flow matching's noise levels, which are SANA's and "
            "SANA-Video's: choose euler or another sampler, or take Sana Flow Sample or Sana Flow Sampler"
        )


def _own_parameterisation(function) -> type | None:
    """The parameterisation that a sampler of ours is for; None for any other function."""
    return next((row.parameterisation for row in SAMPLERS.values() if row.function is function), None)


def check_merged(patcher) -> None:
    """ValueError where a ModelMerge node merged a MODEL of another architecture into this one.

    ComfyUI merges what has the same name and shape, and goes on without the rest.
    """
    merged = {}
    for key, entries in patcher.patches.items():
        weights = [entry[1][0] for entry in entries if isinstance(entry[1], list) and entry[1]]
        if weights:
            merged[key] = [weight[0] if isinstance(weight, tuple) else weight for weight in weights]
    if not merged:
        return
    for key, own in patcher.model_state_dict("diffusion_model.").items():
        other = merged.get(key, [None])[0]
        if other is None or other.shape != own.shape:
            found = "none" if other is None else f"one of {list(other.shape)}"
            raise ValueError(
                f"two MODELs of different architectures cannot be merged: this SANA has a weight {key} of "
                f"{list(own.shape)}, the other has {found}. Merge two of one kind and size"
            )
