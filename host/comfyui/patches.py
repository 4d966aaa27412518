"""What other nodes ask of a MODEL: applied where SANA's transformers support it, an error where they do not.

ComfyUI's nodes write into a model's options, and a model reads the entries that it knows. Without a check,
a node that is not supported would be ignored silently.
"""

from __future__ import annotations

import comfy.model_sampling
import comfy.patcher_extension
import comfy.utils

from ...networks.families import TransformerSpec
from ...networks.latent_spaces import DC_AE
from ...samplers import SAMPLERS, flow_match, trigflow
from ..errors import spoken
from . import kept, traps
from .modules import CastingInt8

SELF_ATTENTION = "self-attention (HyperTile, TomePatchModel, NAGuidance, HypernetworkLoader)"
CROSS_ATTENTION = "cross-attention (NAGuidance, HypernetworkLoader)"
INPUT_BLOCKS = "a UNet's input blocks (PatchModelAddDownscale)"
PATCHES = {
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
    "attn1": "self-attention (SelfAttentionGuidance, or PerturbedAttentionGuidance: use Sana PAG)",
    "attn2": "cross-attention",
    "dit": "whole blocks (SkipLayerGuidanceDiT, SkipLayerGuidanceSD3)",
}
OPTIONS = {
    "rope_options": "rotary positions (ScaleROPE)",
}
"""Names in transformer_options to what they change and which core nodes set them."""

IMAGES = {
    "reference_latents": "a reference image (ReferenceLatent)",
    "unclip_conditioning": "an image from CLIP vision (unCLIPConditioning)",
}
"""Names in a CONDITIONING to what they hold and which core nodes set them."""

MISREAD = {"sample_ddpm", "sample_lcm_upscale"}
"""Core samplers whose added noise is not that of flow matching."""


class NoUnet(dict):
    """A model config's ``unet_config``: an error for nodes that read the sizes of a UNet from it."""

    def __missing__(self, name):
        raise ValueError(f"SANA's transformer is not a UNet and has no {name}: remove the node that is for UNets")

    def copy(self):
        return type(self)(self)


def refuse_patches(options: dict) -> None:
    """ValueError for a node that patches a part which SANA's transformer does not have."""
    requests = [PATCHES.get(name, name) for name, patches in options.get("patches", {}).items() if patches]
    requests += [REPLACED.get(name, name) for name, new in options.get("patches_replace", {}).items() if new]
    requests += [what for name, what in OPTIONS.items() if options.get(name)]
    if requests:
        raise ValueError(
            f"a node changes {' and '.join(dict.fromkeys(requests))}, which SANA's transformer does not support: "
            "remove that node between the loader and the sampler"
        )


def refuse_images(conditioning: dict) -> None:
    """ValueError for a CONDITIONING that holds an image: SANA's only input is the prompt."""
    found = [what for name, what in IMAGES.items() if conditioning.get(name) is not None]
    if found:
        raise ValueError(f"the conditioning holds {' and '.join(found)}, which SANA does not support: remove that node")
    if conditioning.get("concat_latent_image") is not None and conditioning.get("denoise_mask") is None:
        raise ValueError(
            "the conditioning holds a masked image (InpaintModelConditioning), for which SANA has no channels: "
            "turn its noise_mask on, so that the latent keeps what lies outside the mask"
        )


def watch(patcher, spec: TransformerSpec):
    """The patcher with a check before every run of a sampler, from any node. Returns it."""
    cell = (spec.space or DC_AE).cell

    @spoken
    def before(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        sampling = check_sampling(guider.model_patcher)
        check_sigmas(sampling, sigmas)
        check_sampler(sampling, getattr(sampler, "sampler_function", None))
        check_merged(guider.model_patcher)
        traps.tell(spec, guider, len(sigmas) - 1)
        for prompts in guider.conds.values():  # the run's own copies
            for prompt in prompts:
                if prompt.get("area") is not None:
                    prompt["area"] = area_in_cells(prompt["area"], noise.ndim - 2, cell)
        with kept.of_one_run(guider):
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    patcher.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, before)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, _check_and_patch)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, kept.join_on_load)
    return patcher


def _check_and_patch(patcher, device_to, *_) -> None:
    """A MODEL is also loaded in order to be saved, where nothing else checks what was merged."""
    check_merged(patcher)
    patch_other_layers(patcher, device_to)


def patch_other_layers(patcher, device_to, *_) -> None:
    """Patch the weights of layers that are not comfy's, which ComfyUI may leave as they are.

    It never patches what a block holds itself (its modulation table), and a norm or a layer of eight bits only where
    it loads that completely: not with dynamic memory (0.33), which keeps the unpatched weight as a backup, and not
    in a model that is loaded in part.
    """
    dynamic = getattr(patcher, "is_dynamic", bool)()
    eight_bits = {}
    for key in patcher.patches:
        owner, _, name = key.rpartition(".")
        layer = comfy.utils.get_attr(patcher.model, owner)
        if name not in layer._parameters:  # merges list buffers too
            continue
        if isinstance(layer, CastingInt8):
            eight_bits[owner] = layer
        elif not hasattr(layer, "comfy_cast_weights") and (dynamic or key not in patcher.backup):
            patcher.patch_weight_to_device(key, device_to=device_to)
    for owner, layer in eight_bits.items():
        layer.use_floating_weight()
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                patcher.patch_weight_to_device(f"{owner}.{name}", device_to=device_to, force_cast=True)


def area_in_cells(area, dims: int, cell: int) -> tuple:
    """An area in a latent of ``dims`` dimensions (height and width, or time too), in cells of ``cell`` pixels.

    ConditioningSetArea counts 8 pixels per cell; fractions of the whole are ("percentage", …). Both are
    sizes and then starts, by dimension. Edges are rounded, not sizes: areas that touch still touch.
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
    """The MODEL's model_sampling; ValueError where a node set one that SANA was not trained with."""
    sampling = patcher.get_model_object("model_sampling")
    spec = patcher.model.sana_spec
    if isinstance(sampling, (trigflow.TrigFlow, flow_match.FlowMatch)):
        return sampling
    kind = type(sampling).__mro__[1].__name__  # the nodes derive a class from comfy's
    if spec.family.uses_angles:
        raise ValueError(
            f"SANA-Sprint's sigmas are angles: it cannot be sampled with {kind}. Remove the ModelSampling node; "
            "Sana SCM Sigmas sets the angles"
        )
    flow = isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow)
    if not flow or not isinstance(sampling, comfy.model_sampling.CONST) or sampling.multiplier != 1000:
        times = f" and times up to {sampling.multiplier:g}" if flow else ""
        raise ValueError(
            f"{spec.name} is sampled by flow matching with times up to 1000, not with {kind}{times}: "
            "remove that node, or use ModelSamplingSD3 to set the shift"
        )
    return sampling


def check_sigmas(sampling, sigmas) -> None:
    """ValueError for SIGMAS that are not angles of SANA-Sprint, or not noise levels of flow matching.

    Noise levels may also rise, for a run from an image to noise; angles must fall.
    """
    if isinstance(sampling, trigflow.TrigFlow):
        trigflow.check_sigmas(sigmas)
    else:
        flow_match.check_range(sigmas)


def check_sampler(sampling, function) -> None:
    """ValueError for a sampler, of ComfyUI's or ours, that misreads the MODEL's sigmas.

    Samplers of other packs are not checked: many only call one of these.
    """
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", None) or ""
    core = module.split(".")[0] == "comfy" or "comfy_extras" in module
    if isinstance(sampling, trigflow.TrigFlow):
        if (core and name != "sample_lcm") or _own_parameterisation(function) is flow_match.FlowMatch:
            raise ValueError(
                f"SANA-Sprint's sigmas are angles, which {name.removeprefix('sample_')} reads as noise levels: "
                "choose the sampler lcm, or use Sana SCM Sample or Sana SCM Sampler"
            )
    elif _own_parameterisation(function) is trigflow.TrigFlow or name in MISREAD:
        raise ValueError(
            f"{name.removeprefix('sample_')} does not support flow matching, with which SANA and SANA-Video are "
            "sampled: choose euler or another sampler, or use Sana Flow Sample or Sana Flow Sampler"
        )


def _own_parameterisation(function) -> type | None:
    """The parameterisation of a sampler of ours; None for any other function."""
    return next((row.parameterisation for row in SAMPLERS.values() if row.function is function), None)


def check_merged(patcher) -> None:
    """ValueError where a ModelMerge node merged a MODEL of another architecture into this one.

    ComfyUI merges weights of the same name and shape, and ignores the others.
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
                f"{list(own.shape)}, the other has {found}. Merge two MODELs of one kind and size"
            )
