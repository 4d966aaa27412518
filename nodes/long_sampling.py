"""sana/sampling: LongSANA, which makes long videos block by block."""

from __future__ import annotations

import logging

import torch

from .. import host
from ..networks.live_decoding import with_newest
from ..samplers import SAMPLERS
from ..samplers.block_causal import (
    BLOCK,
    TIMES,
    BlockState,
    block_bounds,
    block_lengths,
    check_state,
    parse_times,
    prompt_blocks,
    start_of,
)
from .inputs import samples_of, seed_input
from .models import require_long

logger = logging.getLogger(__name__)

BLOCKS = SAMPLERS["blocks"]


def timesteps_input():
    tip = (
        "The timesteps of each block: falling numbers from 1000, separated by commas. LongSANA was trained with these."
    )
    return ("STRING", {"default": ", ".join(map(str, TIMES)), "tooltip": tip, "advanced": True})


def block_inputs() -> dict:
    """How a video is divided into blocks, and what a block sees of those before."""
    frames = {
        "default": BLOCK,
        "min": 1,
        "max": 1000,
        "tooltip": "Latent frames of a block; what is left over goes into the first. LongSANA was trained with 10.",
        "advanced": True,
    }
    cached = {
        "default": 0,
        "min": 0,
        "max": 1000,
        "tooltip": "How many of the last blocks a block sees; 0 for all, which takes the least memory.",
        "advanced": True,
    }
    recache = {
        "default": True,
        "tooltip": "Where the prompt changes, the block before is read once more with the new prompt: the change is "
        "smoother.",
        "advanced": True,
    }
    return {"block_frames": ("INT", frames), "cached_blocks": ("INT", cached), "recache": ("BOOLEAN", recache)}


def state_input():
    tip = "Where to continue from: the state of Sana Long Video Sample or Sana Long Video Save, or a loaded one."
    return ("SANA_STATE", {"tooltip": tip})


def validate_times(timesteps):
    """True, or what is wrong with a text of timesteps; None where it comes from another node."""
    try:
        if timesteps is not None:
            parse_times(timesteps)
    except ValueError as error:
        return str(error)
    return True


def taken_up(state, spec, samples: torch.Tensor, cached_blocks: int) -> BlockState:
    """A state for a run alone: empty, or a copy of the one to continue from.

    ``samples`` [B, C, T, h, w]: like the latents to come. ValueError for a state of another model or size.
    """
    if state is None:
        return BlockState(cached_blocks=cached_blocks, model=spec.fingerprint)
    if not isinstance(state, BlockState):
        raise ValueError(f"state is a {type(state).__name__}; give the state of Sana Long Video Sample")
    if state.model != spec.fingerprint:
        raise ValueError("the state is of another model: load the model that made it, or give no state")
    check_state(state, samples, cached_blocks)
    return state.moved("cpu", copy=True)


def blocks_of_prompts(positive: list, spec, bounds) -> list[int]:
    """The block that each prompt begins with, told in the log; ValueError for prompts that do not fit the blocks."""
    ratio = spec.frame_ratio
    blocks = prompt_blocks([start_of(options, ratio) for _, options in positive], bounds)
    for number, block in enumerate(blocks[1:], 2):
        frame = (bounds[block] - 1) * ratio + 1
        logger.info("prompt %d begins with block %d of %d, at frame %d", number, block + 1, len(bounds) - 1, frame)
    return blocks


def remember(state: BlockState, samples: torch.Tensor, seed: int) -> None:
    """Note in a state what a later run needs beside the network's sums: the newest latents, and the seed."""
    state.recent, state.seed = with_newest(state.recent, samples.to("cpu", torch.float32)), seed


class SanaLongVideoSample:
    DISPLAY_NAME = "Sana Long Video Sample"
    CATEGORY = "sana/sampling"
    DESCRIPTION = (
        "Samples LongSANA block by block, in constant memory however long the video is. A longer video begins with the "
        "shorter one's frames."
    )
    SEARCH_ALIASES = ["sana", "longsana", "long video", "longlive", "autoregressive", "self forcing", "ksampler"]
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT", "SANA_STATE")
    RETURN_NAMES = ("LATENT", "state")
    OUTPUT_TOOLTIPS = ("The new frames' latent; decode it with the model's VAE.", "What a later run continues from.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A LongSANA transformer."}),
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "The prompt from Sana Encode Video Prompt, or several from Sana Prompt Schedule."},
                ),
                "latent_image": ("LATENT", {"tooltip": "An empty video latent: its size counts."}),
                "seed": seed_input(),
                "timesteps": timesteps_input(),
                **block_inputs(),
            },
            "optional": {"state": state_input()},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, timesteps=None):
        return validate_times(timesteps)

    def sample(self, model, positive, latent_image, seed, timesteps, block_frames, cached_blocks, recache, state=None):
        spec, sigmas = require_long(model), parse_times(timesteps)
        samples = samples_of(latent_image, spec)
        own = taken_up(state, spec, samples, cached_blocks)
        bounds = block_bounds(samples.shape[2], block_frames)
        blocks_of_prompts(positive, spec, bounds)
        steps = (len(sigmas) - 1) * (len(bounds) - 1)
        options = {"block_frames": block_frames, "cached_blocks": cached_blocks, "recache": recache}
        run = {"state": own, "generator": own.generator(seed), "reported": (0, steps), **options}
        start = torch.zeros(samples.shape)
        latent = host.current().sample(
            model, positive, latent_image, start, sigmas, BLOCKS.function, seed, steps=steps, **run
        )
        remember(own, latent["samples"], seed)
        return latent, own.moved("cpu")


class SanaLongVideoSigmas:
    DISPLAY_NAME = "Sana Long Video Sigmas"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "The noise levels of each block of a LongSANA video, for SamplerCustomAdvanced."
    SEARCH_ALIASES = ["sana", "longsana", "long video", "scheduler", "sigmas"]
    FUNCTION = "make"
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Each timestep over 1000, then 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"timesteps": timesteps_input()}}

    @classmethod
    def VALIDATE_INPUTS(cls, timesteps=None):
        return validate_times(timesteps)

    def make(self, timesteps):
        return (parse_times(timesteps),)


class SanaLongVideoSampler:
    DISPLAY_NAME = "Sana Long Video Sampler"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "LongSANA's sampler for SamplerCustomAdvanced, with BasicGuider and Sana Long Video Sigmas."
    SEARCH_ALIASES = ["sana", "longsana", "long video", "sampler", "autoregressive"]
    FUNCTION = "get"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("A sampler for SamplerCustomAdvanced.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": block_inputs()}

    def get(self, block_frames, cached_blocks, recache):
        block_lengths(block_frames, block_frames)
        options = {"block_frames": block_frames, "cached_blocks": cached_blocks, "recache": recache}
        return (host.current().sampler(BLOCKS.function, **options),)
