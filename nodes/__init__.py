"""The node classes, one file for each submenu."""

from __future__ import annotations

from .. import host
from ..host import errors
from . import conditioning, describing, latents, loaders, long_sampling, long_video, sampling, sketch, video

_CLASSES = (
    loaders.SanaLoadPipeline,
    loaders.SanaLoadTransformer,
    loaders.SanaLoadTextEncoder,
    loaders.SanaLoadVAE,
    loaders.SanaLoadLora,
    loaders.SanaLoadControlNet,
    conditioning.SanaEncodePrompt,
    conditioning.SanaEncodeVideoPrompt,
    conditioning.SanaPromptSchedule,
    latents.SanaResolution,
    latents.SanaEmptyLatent,
    latents.SanaEmptyVideoLatent,
    latents.SanaImg2ImgLatent,
    latents.SanaImageToVideoLatent,
    latents.SanaCropToSize,
    sketch.SanaSketch,
    sampling.SanaSCMSample,
    sampling.SanaSCMSigmas,
    sampling.SanaSCMSampler,
    sampling.SanaFlowSample,
    sampling.SanaFlowSigmas,
    sampling.SanaFlowSampler,
    long_sampling.SanaLongVideoSample,
    long_sampling.SanaLongVideoSigmas,
    long_sampling.SanaLongVideoSampler,
    sampling.SanaPAG,
    sampling.SanaCompile,
    video.SanaSaveVideo,
    video.SanaDecodeSaveVideo,
    video.SanaSaveFrames,
    video.SanaSelectFrames,
    long_video.SanaLongVideoSave,
    long_video.SanaSaveVideoState,
    long_video.SanaLoadVideoState,
)

NODE_CLASS_MAPPINGS = {cls.__name__: errors.speak(describing.announced(cls)) for cls in _CLASSES}
NODE_DISPLAY_NAME_MAPPINGS = {cls.__name__: cls.DISPLAY_NAME for cls in _CLASSES}

host.serve(describing.describe)
