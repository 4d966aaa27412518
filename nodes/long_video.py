"""sana/video: a long video that is sampled, decoded and saved block by block, and states between two of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from .. import host
from ..media import claims, thumbnail, writer
from ..media.formats import VIDEO_FORMATS
from ..model_loaders import long_state
from ..samplers.block_causal import STARTS, BlockState, block_bounds, block_lengths, parse_times
from . import checks
from .inputs import seed_input
from .latents import VIDEO_STEP, sides_message
from .long_sampling import (
    BLOCKS,
    block_inputs,
    blocks_of_prompts,
    remember,
    state_input,
    taken_up,
    timesteps_input,
    validate_times,
)
from .models import require_long
from .video import HIDDEN, Saves, check_file, file_inputs, prefix_input, target_of

logger = logging.getLogger(__name__)

STATES = "states"
"""The folder of saved states, below the output folder."""


class LongVideo:
    """A long video on its way from noise to frames; ``done`` of its blocks are sampled and decoded.

    What is wrong with the inputs is raised here, before any work.
    """

    def __init__(self, model, positive, vae, size, frames: int, seed: int, timesteps: str, blocks: dict, state):
        self.here, self.model, self.positive, self.vae, self.seed = host.current(), model, positive, vae, seed
        self.spec, self.sigmas, self.vae_spec = (
            require_long(model),
            parse_times(timesteps),
            host.current().vae_spec(vae),
        )
        self.shape = self._latent_shape(size, frames, state is not None, blocks["block_frames"])
        self.lengths = block_lengths(self.shape[2], blocks["block_frames"])
        bounds = block_bounds(self.shape[2], blocks["block_frames"])
        self.prompt_blocks = blocks_of_prompts(positive, self.spec, bounds)
        like = torch.empty(self.shape, device="meta")
        self.state = taken_up(state, self.spec, like, blocks["cached_blocks"])
        self.options = {name: blocks[name] for name in ("cached_blocks", "recache")}
        self.before = 0 if self.state.recent is None else self.state.recent.shape[2]
        self.done = 0

    def _latent_shape(self, size: tuple[int, int], frames: int, goes_on: bool, block: int) -> tuple[int, ...]:
        if self.spec.space is not self.vae_spec.space:
            wanted = self.spec.space.name if self.spec.space else "the VAE of its size"
            raise ValueError(
                f"the VAE is {self.vae_spec.name}, but this MODEL's latents are of {wanted}: load that one"
            )
        ratio, cell = self.vae_spec.temporal_ratio, self.vae_spec.spatial_ratio
        for name, side, patch in zip(("height", "width"), size, self.spec.patch[1:]):
            if side < cell * patch or side % (cell * patch):
                raise ValueError(f"{name} is {side}; give a multiple of {cell * patch}, such as 480 or 832")
        latent = frames // ratio if goes_on else self.vae_spec.latent_frames(frames)
        if latent < block:
            least = block * ratio if goes_on else self.vae_spec.frames(block)
            raise ValueError(
                f"frames is {frames}, less than one block: give {least} or more, or a smaller block_frames"
            )
        return (1, self.spec.latent_channels, latent, size[0] // cell, size[1] // cell)

    @property
    def frames(self) -> int:
        """The number of frames to come."""
        return self.vae_spec.frames(self.before + self.shape[2]) - self.skipped

    @property
    def skipped(self) -> int:
        """Frames of the clip before, which are decoded once more so that the new ones continue from them."""
        return self.vae_spec.frames(self.before) if self.before else 0

    def pieces(self) -> Iterator[torch.Tensor]:
        """The new frames [n, H, W, 3] in order; a block is sampled when the frames before it are taken."""
        skip = self.skipped
        for piece in self.here.decode_stream(self.vae, self._latents(), self.before + self.shape[2]):
            if len(piece) > skip:
                yield piece[skip:]
            skip = max(0, skip - len(piece))

    def _latents(self) -> Iterator[torch.Tensor]:
        if self.state.recent is not None:
            yield self.state.recent
        generator = self.state.generator(self.seed)
        for number, length in enumerate(self.lengths):
            latent = self._sampled(number, length, generator)
            remember(self.state, latent, self.seed)
            yield latent
            self.done = number + 1

    def _sampled(self, number: int, length: int, generator: torch.Generator) -> torch.Tensor:
        shape, each = (*self.shape[:2], length, *self.shape[3:]), len(self.sigmas) - 1
        steps = each * len(self.lengths)
        run = {"state": self.state, "generator": generator, "reported": (number * each, steps), "block_frames": length}
        states, options = self.positive[sum(block <= number for block in self.prompt_blocks) - 1]
        prompt = [[states, {name: value for name, value in options.items() if name != STARTS}]]
        empty, noise = {"samples": self.here.empty_latent(shape)}, torch.zeros(shape)
        latent = self.here.sample(
            self.model,
            prompt,
            empty,
            noise,
            self.sigmas,
            BLOCKS.function,
            self.seed,
            steps=steps,
            **run,
            **self.options,
        )
        return latent["samples"]


class UntilStopped:
    """Pieces of frames up to an interrupt or an error, which is ``reason`` then; before the first one it is raised."""

    def __init__(self, pieces: Iterator[torch.Tensor]):
        self.pieces, self.count = pieces, 0
        self.reason: BaseException | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        stops: tuple[type[BaseException], ...] = (Exception, *host.current().interrupts)
        while True:
            try:
                piece = next(self.pieces, None)
            except stops as reason:
                if not self.count:
                    raise
                self.reason = reason
                return
            if piece is None:
                return
            self.count += len(piece)
            yield piece


def _check_long_file(filename_prefix=None, timesteps=None, width=None, height=None, **_):
    checked = sides_message(width, height, VIDEO_STEP) or check_file(filename_prefix)
    return validate_times(timesteps) if checked is True else checked


class SanaLongVideoSave(Saves):
    DISPLAY_NAME = "Sana Long Video Save"
    CATEGORY = "sana/video"
    DESCRIPTION = (
        "Samples LongSANA, decodes and saves block by block: a video of any length in the memory of one block. Stopped "
        "early, it leaves a file of the blocks so far."
    )
    SEARCH_ALIASES = ["sana", "longsana", "long video", "minute", "streaming", "longlive", "low memory"]
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "SANA_STATE")
    RETURN_NAMES = ("path", "state")
    OUTPUT_TOOLTIPS = ("The file's path.", "What a later run continues from.")

    @classmethod
    def INPUT_TYPES(cls):
        side = {"min": 16, "max": 16384, "step": 16}
        frames = {
            "default": 961,
            "min": 1,
            "max": 1_000_000,
            "tooltip": "Frames of the video, best 41 + 40 k. With a state, that many more, best a multiple of 40.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A LongSANA transformer."}),
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "The prompt from Sana Encode Video Prompt, or several from Sana Prompt Schedule."},
                ),
                "vae": ("VAE", {"tooltip": "The model's video VAE, from Sana Load Pipeline or Sana Load VAE."}),
                "width": ("INT", {"default": 832, **side, "tooltip": "Width in pixels."}),
                "height": ("INT", {"default": 480, **side, "tooltip": "Height in pixels."}),
                "frames": ("INT", frames),
                "seed": seed_input(),
                "timesteps": timesteps_input(),
                **block_inputs(),
                **file_inputs(),
            },
            "optional": {"state": state_input()},
            "hidden": HIDDEN,
        }

    VALIDATE_INPUTS = checks.Validation(_check_long_file, otherwise="filename_prefix")

    def save(
        self, model, positive, vae, width, height, frames, seed, timesteps, fps, format, quality, filename_prefix,
        state=None, prompt=None, extra_pnginfo=None, **blocks,
    ):  # fmt: skip
        writer.check_video(fps, format, quality)
        size = (height, width)
        video = LongVideo(model, positive, vae, size, frames, seed, timesteps, blocks, state)
        here, target, kind = host.current(), target_of(filename_prefix, size), VIDEO_FORMATS[format]
        pieces = UntilStopped(video.pieces())
        tags = here.tags(prompt, extra_pnginfo)
        small = None if kind.plays else thumbnail.Thumbnail(video.frames, fps)
        noted = pieces if small is None else small.noting(pieces)
        path = writer.write_video(target.names(kind.suffix), noted, fps, format, quality, tags)
        if pieces.reason is not None:
            counts = (video.done, len(video.lengths), path, pieces.count, video.frames)
            logger.warning("Stopped after %d of %d blocks: %s has %d of %d frames.", *counts)
            raise pieces.reason
        return {"ui": here.shown(target, [path], kind.plays, small), "result": (str(path), video.state.moved("cpu"))}


class SanaSaveVideoState(Saves):
    DISPLAY_NAME = "Sana Save Video State"
    CATEGORY = "sana/video"
    DESCRIPTION = "Saves the state of a long video to a file, so that another run can continue from its end."
    SEARCH_ALIASES = ["sana", "longsana", "long video", "save latent", "continue video"]
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("SANA_STATE", "STRING")
    RETURN_NAMES = ("state", "path")
    OUTPUT_TOOLTIPS = ("The state, unchanged.", "The file's path.")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"state": state_input(), "filename_prefix": prefix_input(f"{STATES}/Sana")}}

    def save(self, state, filename_prefix):
        if not isinstance(state, BlockState):
            raise ValueError(f"state is a {type(state).__name__}; give the state of Sana Long Video Sample")
        target = target_of(filename_prefix, (0, 0))
        with claims.claimed(target.names(long_state.SUFFIX)) as (claim,):
            long_state.write_state(claim.part, state)
            path = claim.publish()
        return {"ui": {"text": [str(path)]}, "result": (state, str(path))}


class SanaLoadVideoState:
    DISPLAY_NAME = "Sana Load Video State"
    CATEGORY = "sana/video"
    DESCRIPTION = "Loads the state of a long video that Sana Save Video State saved."
    SEARCH_ALIASES = ["sana", "longsana", "long video", "load latent", "continue video"]
    FUNCTION = "load"
    RETURN_TYPES = ("SANA_STATE",)
    OUTPUT_TOOLTIPS = ("The state, for Sana Long Video Sample or Sana Long Video Save.",)

    @classmethod
    def INPUT_TYPES(cls):
        names = list(_saved())
        tip = f"A file of Sana Save Video State, in the input folder or in {STATES} below the output folder."
        return {"required": {"state_name": (names, {"tooltip": tip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, state_name=None):
        if state_name is not None and state_name not in _saved():
            return f"there is no saved state called {state_name!r}: save one with Sana Save Video State"
        return True

    @classmethod
    def IS_CHANGED(cls, state_name):
        path = _saved().get(state_name)
        return path.stat().st_mtime_ns if path else state_name

    def load(self, state_name):
        return (long_state.read_state(_saved()[state_name]),)


def _saved() -> dict[str, Path]:
    return host.current().saved_files(long_state.SUFFIX, STATES)
