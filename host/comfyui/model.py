"""SANA's transformers as ComfyUI MODELs."""

from __future__ import annotations

import comfy.cli_args
import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch

from ...model_loaders import dtypes, int8
from ...model_loaders.memory import CAPTION, transformer_memory
from ...model_loaders.scaled_fp8 import apply_scales
from ...model_loaders.transformer import DEFAULT_GUIDANCE, LoadedTransformer, network_inputs, velocity
from ...samplers.flow_match import FlowMatch
from ...samplers.trigflow import TrigFlow
from . import patches
from .modules import adopt, patcher_class, say_dtype
from .previews import PUBLISHED_GAIN, Previewing


class SanaLatentFormat(comfy.latent_formats.LatentFormat):
    """32 channels, a 32nd of the picture's side. Our VAE scales, so latents are passed on as they are.

    ComfyUI's previewer asks for the colours when a run begins and previews are on; they are found then.
    """

    latent_channels = 32
    spacial_downscale_ratio = 32

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
    """Latents of a video VAE that normalises them itself: LTX-2's, and DC-AE-V's."""

    latent_dimensions = 3
    spacial_downscale_ratio = 32


class SanaConfig(comfy.supported_models_base.BASE):
    """What BaseModel reads of a model config; the module itself comes ready-built."""

    unet_config = patches.NoUnet(disable_unet_model_creation=True)
    latent_format = SanaLatentFormat
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def process_unet_state_dict_for_saving(self, state_dict):
        return super().process_unet_state_dict_for_saving(int8.floating_state(state_dict))


class ComfyForward:
    """A diffusers transformer that is called as ComfyUI calls its diffusion models.

    The wrappers that nodes put around a diffusion model (EasyCache) are run here, with
    ``transformer_options`` last, as ComfyUI's own models do.
    """

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **given):
        options = {} if transformer_options is None else transformer_options
        patches.refuse_patches(options)
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._once, self, wrappers)
        return run.execute(x, timesteps, context, given.get("guidance"), given.get("denoise_mask"), control, options)

    def _once(self, x, timesteps, context, guidance, denoise_mask, control, transformer_options):
        added = [part.to(x.dtype) for place in (control or {}).values() for part in place if part is not None]
        inputs = network_inputs(self.sana_spec, x, timesteps, context, guidance, denoise_mask, added)
        return velocity(self.sana_spec, super().forward(**inputs))

    @property
    def dtype(self):
        return self.weight_dtype


class SanaBaseModel(comfy.model_base.BaseModel):
    """The part that is the same for every SANA model: latent format, conditioning, memory."""

    def __init__(self, loaded: LoadedTransformer, config: SanaConfig, sampling: torch.nn.Module):
        super().__init__(config, comfy.model_base.ModelType.FLOW)
        self.diffusion_model = loaded.module
        self.sana_spec = loaded.spec
        casting = self.manual_cast_dtype is not None
        self.sana_memory = transformer_memory(loaded.module, loaded.spec.patch, casting)
        self.model_sampling = sampling

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes of a call with latents of ``input_shape``; what control nets take, ComfyUI asks of them."""
        known = cond_shapes or {}
        captions = max((shape[1] for shape in known.get("c_crossattn", ())), default=CAPTION)
        dtype = self.manual_cast_dtype or self.get_dtype()
        return self.sana_memory.step(input_shape, dtype.itemsize, captions, bool(known.get("denoise_mask")))

    def extra_conds_shapes(self, **kwargs):
        """What is known before sampling begins: the prompt's length."""
        states = kwargs.get("cross_attn")
        return {} if states is None else {"c_crossattn": list(states.shape)}

    def extra_conds(self, **kwargs):
        patches.refuse_pictures(kwargs)
        conds = super().extra_conds(**kwargs)
        if self.sana_spec.guidance_scale is not None:
            guidance = kwargs.get("guidance")
            guidance = DEFAULT_GUIDANCE if guidance is None else guidance
            conds["guidance"] = comfy.conds.CONDRegular(torch.FloatTensor([guidance]))
        return conds

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        sigma = sigma.reshape([sigma.shape[0]] + [1] * (noise.ndim - 1))
        mix = getattr(self.model_sampling, "mix", self.model_sampling.noise_scaling)  # ModelSamplingSD3 has the second
        return mix(sigma, noise, latent_image)


class SanaSprint(SanaBaseModel):
    """SANA-Sprint: TrigFlow angles are its sigmas."""

    def __init__(self, loaded: LoadedTransformer, config: SanaConfig):
        super().__init__(loaded, config, TrigFlow())


class ComfyFlowMatch(FlowMatch, comfy.model_sampling.CONST):
    """FlowMatch under the name by which ComfyUI's samplers and nodes know flow matching."""


class SanaImage(SanaBaseModel):
    """SANA and SANA 1.5: flow matching."""

    def __init__(self, loaded: LoadedTransformer, config: SanaConfig):
        super().__init__(loaded, config, ComfyFlowMatch(loaded.spec.flow_shift))


class SanaVideo(SanaImage):
    """SANA-Video: flow matching, with a time of 0 where the latent is held (image to video)."""

    def extra_conds(self, **kwargs):
        conds = super().extra_conds(**kwargs)
        mask = kwargs.get("denoise_mask")
        if mask is not None:
            conds["denoise_mask"] = comfy.conds.CONDRegular(mask[:, :1])
        return conds

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        return latent_image


MODELS = {"sprint": SanaSprint, "image": SanaImage, "video": SanaVideo}
VIDEO_FORMATS = {16: comfy.latent_formats.Wan21, 128: comfy.latent_formats.LTXV}


def _latent_format(spec):
    made = (
        SanaLatentFormat()
        if spec.family != "video"
        else VIDEO_FORMATS.get(spec.latent_channels, SanaVideoLatentFormat)()
    )
    made.latent_channels = spec.latent_channels
    return made


def _flagged_dtype() -> torch.dtype | None:
    """How ComfyUI was told to store diffusion models (--fp16-unet and its like), or None."""
    flags = comfy.cli_args.args
    names = ("fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2")
    return next((dtypes.WEIGHT_DTYPES[name] for name in names if getattr(flags, f"{name}_unet")), None)


def network_dtypes(module, wanted, device):
    """What a network is stored in, and what it is cast to at each use, or None."""
    stored = dtypes.stored_dtype(module, wanted)
    cast = comfy.model_management.unet_manual_cast(stored, device, SanaConfig.supported_inference_dtypes)
    return stored, cast


def build_model(loaded: LoadedTransformer, weight_dtype: str):
    """A ModelPatcher around a loaded transformer, in the dtypes that ComfyUI chooses for the device."""
    wanted = dtypes.parse_weight_dtype(weight_dtype, dtypes.TRANSFORMER_DTYPES) or _flagged_dtype()
    load_device = comfy.model_management.get_torch_device()
    stored, cast = network_dtypes(loaded.module, wanted, load_device)
    if loaded.scaled:
        apply_scales(loaded.module, loaded.scaled, dtypes.floating(wanted) or cast or stored)
        stored, cast = network_dtypes(loaded.module, wanted, load_device)
    config = SanaConfig(SanaConfig.unet_config)
    config.set_inference_dtype(stored, cast)
    config.latent_format = _latent_format(loaded.spec)

    module = adopt(loaded.module, wanted, cast or stored)
    module.sana_spec, module.weight_dtype = loaded.spec, stored
    module.__class__ = type(f"Comfy{type(module).__name__}", (ComfyForward, type(module)), {})
    model = MODELS[loaded.spec.family](loaded, config)
    say_dtype(loaded.spec.name, cast or stored, f"it is stored in {str(wanted or stored).removeprefix('torch.')}")
    offload_device = comfy.model_management.unet_offload_device()
    patcher = patcher_class()(model, load_device=load_device, offload_device=offload_device)
    return patches.watch(patcher, loaded.spec.latent_channels)
