"""The model families as frozen rows: the differences between SANA-Sprint, SANA, SANA-Video and LongSANA.

A new family is a row here, its kind and signature in model_loaders/files/kinds.py, its module, and its tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .latent_spaces import LatentSpace, space_of

if TYPE_CHECKING:  # the command line lists models without torch
    import torch


@dataclass(frozen=True)
class Family:
    """One row.

    ``module``: the class in diffusers; ``config_class``: what its config.json says, if that is another.
    ``parameterisation``: creates the model_sampling object for a flow shift. ``samplers``: names in the sampler table
    for this family, the default first. ``uses_angles``: True if sigmas are the angles of TrigFlow, False if they are
    the noise levels of flow matching. ``video``: latents have frames; ``block_causal``: they are sampled block by
    block. ``instruction``: the key in prompts.INSTRUCTIONS that it was trained with. ``flow_shift``: the default;
    ``large_flow_shift``: that of the 4096 pixel model (sample_size 128). ``node`` and ``latent_node``: display names of
    the nodes that sample it and create its latents.
    """

    key: str
    name: str
    module: str
    parameterisation: Callable[[float], torch.nn.Module]
    samplers: tuple[str, ...]
    uses_angles: bool
    video: bool
    instruction: str
    flow_shift: float
    large_flow_shift: float
    guidance_scale: float
    node: str
    latent_node: str
    block_causal: bool = False
    config_class: str = ""


def _trigflow(flow_shift: float) -> torch.nn.Module:
    from ..samplers.trigflow import TrigFlow

    return TrigFlow()


def _flow_match(flow_shift: float) -> torch.nn.Module:
    from ..samplers.flow_match import FlowMatch

    return FlowMatch(flow_shift)


SPRINT = Family(
    key="sprint",
    name="SANA-Sprint",
    module="SanaTransformer2DModel",
    parameterisation=_trigflow,
    samplers=("scm",),
    uses_angles=True,
    video=False,
    instruction="image",
    flow_shift=3.0,
    large_flow_shift=3.0,
    guidance_scale=4.5,
    node="Sana SCM Sample",
    latent_node="Sana Empty Latent",
)
IMAGE = replace(
    SPRINT,
    key="image",
    name="SANA",
    parameterisation=_flow_match,
    samplers=("dpm_solver++", "euler"),
    uses_angles=False,
    large_flow_shift=6.0,
    node="Sana Flow Sample",
)
VIDEO = replace(
    IMAGE,
    key="video",
    name="SANA-Video",
    module="SanaVideoTransformer3DModel",
    video=True,
    instruction="video",
    flow_shift=8.0,
    large_flow_shift=8.0,
    guidance_scale=6.0,
    latent_node="Sana Empty Video Latent",
)
LONG_VIDEO = replace(
    VIDEO,
    key="long_video",
    name="LongSANA",
    samplers=("blocks",),
    instruction="long",
    guidance_scale=1.0,
    node="Sana Long Video Sample",
    block_causal=True,
    config_class="SanaVideoCausalTransformer3DModel",
)
FAMILIES = {family.key: family for family in (SPRINT, IMAGE, VIDEO, LONG_VIDEO)}

LARGEST_SAMPLE_SIZE = 128
"""Latent cells on a side of the 4096 pixel model."""


@dataclass(frozen=True)
class TransformerSpec:
    """The parameters of a loaded transformer.

    ``width``: channels of a token. ``patch``: latent cells per token in frames, rows and columns.
    ``guidance_scale``: the factor of SANA-Sprint's embedded guidance, None without one. ``flow_shift``: the model's
    own. ``fingerprint``: of its weights, for the states of long videos. ``time_scale``: the factor of the timesteps
    of flow matching, 0 to 1000. ``float16``: it was trained in float16 (SANA 1.0) and can be computed in it; the
    others overflow. ``clips``: its weights are those of that training, stored in float16, and need what
    self-attention gives clipped to float16's range in every dtype.
    """

    family: Family
    latent_channels: int
    caption_channels: int
    width: int
    patch: tuple[int, int, int]
    guidance_scale: float | None = None
    flow_shift: float = 3.0
    time_scale: float = 1.0
    fingerprint: str = ""
    float16: bool = False
    clips: bool = False

    @property
    def name(self) -> str:
        return self.family.name

    @property
    def space(self) -> LatentSpace | None:
        """The latent space of its latents; None if no known autoencoder has this number of channels."""
        return space_of(self.latent_channels, self.family.video)

    @property
    def frame_ratio(self) -> int:
        """Frames of a latent frame; 1 where the latent space is not known."""
        return self.space.frames if self.space else 1

    def sampling(self) -> torch.nn.Module:
        """Its model_sampling object."""
        return self.family.parameterisation(self.flow_shift)
