"""SANA's transformers as ComfyUI MODELs."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import cache

import comfy.cli_args
import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch

from ...model_loaders.quantised.formats import set_values
from ...model_loaders.transformer import LoadedTransformer, load_transformer
from ...networks import int8, precision
from ...networks.accelerated import called, set_mode
from ...networks.families import TransformerSpec
from ...networks.fast_layers import attention_by
from ...networks.fast_transformer import use_fast_transformer
from ...networks.latent_spaces import DC_AE, LTX2, WAN, LatentSpace
from ...networks.long_video import cells_of, state_bytes
from ...networks.memory import CAPTION, transformer_memory
from ...networks.perturbed import attention_of
from ...networks.transformer import mask_of_times, network_inputs, velocity
from ...samplers.block_causal import BlockState
from ...samplers.flow_match import FlowMatch
from ..errors import spoken
from . import attention, compiling, guidance, long_video, packed, pairs, patches
from .kept import of_one_call
from .modules import loads_dynamically, log_compute_dtype, patcher_class, set_reload, use_comfy_ops, uses_bf16
from .patcher import sana_patcher_class
from .previews import PUBLISHED_GAIN, Previewing, SanaLTX2Format, SanaWanFormat


class SanaLatentFormat(comfy.latent_formats.LatentFormat):
    """32 channels, 1/32 of the image's side. Our VAE scales, so latents are passed on unchanged.

    ComfyUI's previewer reads the factors when a run begins and previews are on; the map is fitted then.
    """

    latent_channels = DC_AE.channels
    spacial_downscale_ratio = DC_AE.cell

    def __init__(self):
        self.previewing = Previewing()

    @property
    def latent_rgb_factors(self):
        if self.previewing.tiny_decoder() is not None:
            return [[float(row == column) for column in range(3)] for row in range(3)]
        found = self.previewing.map()
        return found and found.factors

    @property
    def latent_rgb_factors_bias(self):
        if self.previewing.tiny_decoder() is not None:
            return None
        found = self.previewing.map()
        return found and found.bias

    @property
    def latent_rgb_factors_reshape(self):
        decoder = self.previewing.tiny_decoder()
        return decoder and (lambda latent: decoder(latent[:1].float() * PUBLISHED_GAIN))


class SanaVideoLatentFormat(comfy.latent_formats.LatentFormat):
    """Latents of a video VAE that normalises them itself: LTX-2's and DC-AE-V's."""

    latent_dimensions = 3
    spacial_downscale_ratio = 32


class SanaConfig(comfy.supported_models_base.BASE):
    """What BaseModel reads of a model config; the module is built already."""

    unet_config = patches.NoUnet(disable_unet_model_creation=True)
    latent_format = SanaLatentFormat
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def process_unet_state_dict_for_saving(self, state_dict):
        return super().process_unet_state_dict_for_saving(int8.floating_state(state_dict))


class ComfyForward:
    """A diffusers transformer that is called as ComfyUI calls its diffusion models.

    It runs the wrappers that nodes put around a diffusion model (EasyCache), with ``transformer_options``
    last, as ComfyUI's own models do.
    """

    @spoken
    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **given):
        options = {} if transformer_options is None else transformer_options
        patches.refuse_patches(options)
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._once, self, wrappers)
        more = (given.get(name) for name in ("guidance", "denoise_mask", "block"))
        return run.execute(x, timesteps, context, *more, control, options)

    def _once(self, x, timesteps, context, guidance, denoise_mask, block, control, transformer_options):
        added = [part.to(x.dtype) for parts in (control or {}).values() for part in parts if part is not None]
        kept = of_one_call(self, context, transformer_options) if block is None else None
        more = {"kept": kept, "block": block}
        inputs = network_inputs(self.sana_spec, x, timesteps, context, guidance, denoise_mask, added, **more)
        with attention_by(self, attention.chosen(transformer_options)):
            output = called(transformer_options.get(compiling.KEY), super().forward, inputs)
        return velocity(self.sana_spec, output)

    @property
    def dtype(self):
        return self.weight_dtype


class ComfyBlockForward(ComfyForward):
    """LongSANA's, which is called for one block of a long video.

    ComfyUI 0.33's own sampler for such models (SamplerARVideo) asks for caches and gives them back with each call.
    """

    def init_kv_caches(self, batch_size, max_seq_len, device, dtype) -> list[dict]:
        """``end`` is the sampler's own count."""
        return [{"state": BlockState(), "end": 0}]

    def init_crossattn_caches(self, batch_size, device, dtype) -> list:
        return []


class SanaBaseModel(comfy.model_base.BaseModel):
    """The part that is the same for every SANA model: latent format, conditioning, memory."""

    def __init__(self, loaded: LoadedTransformer, config: SanaConfig, sampling: torch.nn.Module):
        super().__init__(config, comfy.model_base.ModelType.FLOW)
        self.diffusion_model = loaded.module
        self.sana_spec = loaded.spec
        unpacks = any(isinstance(part, packed.Packed) for part in loaded.module.modules())
        casting = unpacks or self.manual_cast_dtype is not None
        self.sana_memory = transformer_memory(loaded.module, loaded.spec.patch, casting)
        self.model_sampling = sampling

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **given):
        """Perturbs attention outside of the network, which TorchCompileModel compiles."""
        options = {} if transformer_options is None else transformer_options
        with attention_of(self.diffusion_model, options.get(guidance.KEY)):
            return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **given)

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes of a call with latents of ``input_shape``, without those of ControlNets."""
        known = cond_shapes or {}
        captions = max((shape[1] for shape in known.get("c_crossattn", ())), default=CAPTION)
        dtype = self.manual_cast_dtype or self.get_dtype()
        return self.sana_memory.step(input_shape, dtype.itemsize, captions, bool(known.get("denoise_mask")))

    def extra_conds_shapes(self, **kwargs):
        """What is known before sampling begins: the prompt's length."""
        states = kwargs.get("cross_attn")
        return {} if states is None else {"c_crossattn": list(states.shape)}

    def extra_conds(self, **kwargs):
        patches.refuse_images(kwargs)
        conds = super().extra_conds(**kwargs)
        if self.sana_spec.guidance_scale is not None:
            guidance = kwargs.get("guidance")
            guidance = self.sana_spec.family.guidance_scale if guidance is None else guidance
            conds["guidance"] = comfy.conds.CONDRegular(torch.FloatTensor([guidance]))
        for cond in conds.values():  # once in a run: ComfyUI would move them at each step, and wait
            if isinstance(cond.cond, torch.Tensor) and kwargs.get("device") is not None:
                cond.cond = cond.cond.to(kwargs["device"])
        return conds

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        sigma = sigma.reshape([sigma.shape[0]] + [1] * (noise.ndim - 1))
        mix = getattr(self.model_sampling, "mix", self.model_sampling.noise_scaling)  # ModelSamplingSD3's has no mix
        return mix(sigma, noise, latent_image)


class ComfyFlowMatch(FlowMatch, comfy.model_sampling.CONST):
    """FlowMatch as a CONST, the class by which ComfyUI's samplers and nodes recognise flow matching."""


class SanaVideo(SanaBaseModel):
    """A model of videos: a time of 0 where the latent is held (image to video)."""

    def extra_conds(self, **kwargs):
        conds = super().extra_conds(**kwargs)
        mask = kwargs.get("denoise_mask")
        if mask is not None and bool((mask < 1).any()):  # asked once in a run: a step waits for nothing
            conds["denoise_mask"] = comfy.conds.CONDRegular(mask_of_times(mask))
        return conds

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        return latent_image


class SanaLongVideo(SanaVideo):
    """LongSANA: a call has one block, beside which its state is in memory."""

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **given):
        """Gives the network its BlockCall by itself: of transformer_options TorchCompileModel sees no change."""
        given["block"] = long_video.block_of(transformer_options or {}, t)
        return super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **given)

    def extra_conds_shapes(self, **kwargs):
        """How many blocks the state keeps one by one too (long_video.py)."""
        return {**super().extra_conds_shapes(**kwargs), long_video.CACHED: [kwargs.get(long_video.CACHED, 0)]}

    def memory_required(self, input_shape, cond_shapes=None):
        config = self.diffusion_model.config
        itemsize = (self.manual_cast_dtype or self.get_dtype()).itemsize
        cached = max((count for (count,) in (cond_shapes or {}).get(long_video.CACHED, ())), default=0)
        state = state_bytes(config, input_shape[0], cells_of(config, input_shape), itemsize, cached)
        return super().memory_required(input_shape, cond_shapes) + state


LATENT_FORMATS: dict[LatentSpace | None, type] = {
    DC_AE: SanaLatentFormat,
    WAN: SanaWanFormat,
    LTX2: SanaLTX2Format,
}
"""ComfyUI's formats of the latent spaces that it knows with previews of ours, and ours of DC-AE's."""


def _latent_format(spec: TransformerSpec) -> comfy.latent_formats.LatentFormat:
    made = LATENT_FORMATS.get(spec.space, SanaVideoLatentFormat if spec.family.video else SanaLatentFormat)()
    made.latent_channels = spec.latent_channels
    return made


def _model_sampling(spec: TransformerSpec) -> torch.nn.Module:
    sampling = spec.sampling()
    return ComfyFlowMatch(spec.flow_shift) if isinstance(sampling, FlowMatch) else sampling


@cache
def _comfy_class(kind: type, forward: type = ComfyForward) -> type:
    """A diffusers transformer's class with ComfyForward in front; the same class at every load."""
    return type(f"Comfy{kind.__name__}", (forward, kind), {})


def _flagged_dtype() -> torch.dtype | None:
    """How ComfyUI was told to store diffusion models (--fp16-unet and its like), or None."""
    flags = comfy.cli_args.args
    names = ("fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2")
    return next((precision.WEIGHT_DTYPES[name] for name in names if getattr(flags, f"{name}_unet")), None)


def network_dtypes(module, wanted, device, float16: bool):
    """What a network is stored in, and what it is cast to at each use, or None.

    ``float16``: as in a TransformerSpec. ComfyUI computes in float16 what is stored in it, on cards that have it.
    """
    stored = precision.stored_dtype(module, wanted)
    cast = comfy.model_management.unet_manual_cast(stored, device, SanaConfig.supported_inference_dtypes)
    overflows = stored == torch.float16 and cast is None and not float16
    if overflows or device.type == "cpu":  # where ComfyUI knows of float32 alone
        compute = precision.compute_dtype(stored, uses_bf16(device, "fp32_unet"))
        cast = None if compute == stored else compute
    return stored, cast


def build_model(
    loaded: LoadedTransformer,
    weight_dtype: str,
    products: str = precision.PRODUCTS[0],
    disable_dynamic: bool = False,
):
    """A ModelPatcher around a loaded transformer, in the dtypes that ComfyUI chooses for the device.

    Quantised weights stay packed with the default weight_dtype. ``products``: one of precision.PRODUCTS.
    """
    mode = set_mode()
    wanted = precision.parse_weight_dtype(weight_dtype, precision.TRANSFORMER_DTYPES) or _flagged_dtype()
    load_device = comfy.model_management.get_torch_device()
    stored, cast = network_dtypes(loaded.module, wanted, load_device, loaded.spec.float16)
    kept = packed.packable(loaded.module, loaded.quantised if wanted is None else {})
    if dequantised := {name: value for name, value in loaded.quantised.items() if name not in kept}:
        set_values(loaded.module, dequantised, precision.floating(wanted) or cast or stored)
        stored, cast = network_dtypes(loaded.module, wanted, load_device, loaded.spec.float16)
    config = SanaConfig(SanaConfig.unet_config)
    config.set_inference_dtype(stored, cast)
    config.latent_format = _latent_format(loaded.spec)

    disable_dynamic = disable_dynamic or mode != "off"
    dynamic = loads_dynamically(load_device, disable_dynamic)
    module = use_comfy_ops(loaded.module, wanted, cast or stored, dynamic=dynamic)
    module = packed.use_packed_layers(module, kept, cast or stored, load_device, products)
    module = use_fast_transformer(module, loaded.spec.clips)
    module.sana_spec, module.weight_dtype = loaded.spec, stored
    family = loaded.spec.family
    module.__class__ = _comfy_class(module.__class__, ComfyBlockForward if family.block_causal else ComfyForward)
    make = SanaLongVideo if family.block_causal else SanaVideo if family.video else SanaBaseModel
    model = make(loaded, config, _model_sampling(loaded.spec))
    word = str(wanted or stored).removeprefix("torch.")
    log_compute_dtype(loaded.spec.name, cast or stored, f"it is stored in {word}")
    make_patcher = sana_patcher_class(patcher_class(not disable_dynamic))
    patcher = make_patcher(model, load_device, comfy.model_management.unet_offload_device())
    set_reload(patcher, _reload, weakref.ref(model), loaded.path, loaded.spec, weight_dtype, products)
    watched = long_video.watch(patches.watch(patcher, loaded.spec), loaded.spec)
    return watched if mode == "off" else compiling.compiled(watched, mode)


def _reload(
    first: weakref.ref, path, spec: TransformerSpec, weight_dtype: str, products: str, disable_dynamic: bool = False
):
    """build_model of the file once more; ``spec`` has the flow shift of its pipeline, ``first`` the VAE and encoder."""
    made = build_model(replace(load_transformer(path), spec=spec), weight_dtype, products, disable_dynamic)
    if (model := first()) is not None:
        pairs.pair_alike(made.model, model)
    return made
