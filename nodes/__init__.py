"""The node classes, one file for each submenu."""

from __future__ import annotations

from . import conditioning, latents, loaders, sampling, video

_CLASSES = (
    loaders.SanaLoadPipeline,
    loaders.SanaLoadTransformer,
    loaders.SanaLoadTextEncoder,
    loaders.SanaLoadVAE,
    loaders.SanaLoadLora,
    loaders.SanaLoadControlNet,
    conditioning.SanaEncodePrompt,
    conditioning.SanaEncodeVideoPrompt,
    latents.SanaResolution,
    latents.SanaEmptyLatent,
    latents.SanaEmptyVideoLatent,
    latents.SanaImg2ImgLatent,
    latents.SanaImageToVideoLatent,
    latents.SanaCropToSize,
    sampling.SanaSCMSample,
    sampling.SanaSCMSigmas,
    sampling.SanaSCMSampler,
    sampling.SanaFlowSample,
    sampling.SanaFlowSigmas,
    sampling.SanaFlowSampler,
    sampling.SanaPAG,
    video.SanaSaveVideo,
    video.SanaDecodeSaveVideo,
    video.SanaSaveFrames,
    video.SanaSelectFrames,
)

NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in _CLASSES}
NODE_DISPLAY_NAME_MAPPINGS = {cls.__name__: cls.DISPLAY_NAME for cls in _CLASSES}
