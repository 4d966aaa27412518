"""Long videos block by block: the sampler of LongSANA, and what a run carries from one block to the next.

A block is sampled in a few steps that read what the network kept of the blocks before, and never write it. Once the
block is clean, one more call at time 0 writes it. That call waits until a next block is asked for: the last block needs
none, and where the prompt changes, it is made with the new prompt (recaching).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .flow_match import STEPS_IN_TRAINING, check_sigmas
from .noise import draw, seeded_generator, to_device

BLOCK = 10
"""Latent frames of a block, as LongSANA was trained."""

TIMES = (1000, 960, 889, 727)
"""The timesteps of a block: 1000, 750, 500 and 250 moved by the flow shift of 8."""

KEY = "sana_block"
"""The name of a BlockCall in ``transformer_options``."""


@dataclass
class BlockState:
    """What a run knows of the blocks so far. It belongs to that run alone, and is changed in place.

    ``kept``: the network's tensors, made at its first call. ``start``: latent frames in them; ``blocks``: how many
    blocks; ``cached_blocks``: how many of the last blocks count (0: all). ``last`` [B, C, F, h, w] float32: the newest
    block, which is not in ``kept`` yet; ``context`` [1, L, width]: the prompt that it was sampled with. ``seed`` and
    ``noise``: the seed of the noise and the generator's state after the newest block. ``model``: TransformerSpec's
    fingerprint. ``recent`` [B, C, n, h, w]: the newest latents as a LATENT has them, for a decoder to continue from.
    """

    cached_blocks: int = 0
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    start: int = 0
    blocks: int = 0
    last: torch.Tensor | None = None
    context: torch.Tensor | None = None
    seed: int = 0
    noise: torch.Tensor | None = None
    model: str = ""
    recent: torch.Tensor | None = None

    @property
    def frames(self) -> int:
        """Latent frames so far, with the newest block."""
        return self.start + (0 if self.last is None else self.last.shape[2])

    @property
    def bytes(self) -> int:
        """Bytes of the network's tensors."""
        return sum(tensor.nbytes for tensor in self.kept.values())

    def moved(self, device: torch.device | str, copy: bool = False) -> BlockState:
        """The same on a device; with ``copy`` nothing is shared with this one."""
        kept = {name: tensor.to(device, copy=copy) for name, tensor in self.kept.items()}
        last, context = (None if one is None else one.to(device, copy=copy) for one in (self.last, self.context))
        return replace(self, kept=kept, last=last, context=context)

    def generator(self, seed: int) -> torch.Generator:
        """The noise's generator: that of this run, or for another ``seed`` a new one."""
        made = seeded_generator(seed)
        if self.noise is not None and self.seed == seed:
            made.set_state(self.noise)
        return made


@dataclass
class BlockCall:
    """One call of the network on a block [B, C, F, h, w] that follows ``state.start`` latent frames.

    ``writes``: whether the block goes into the state. ``number``: which block of the run it is, and ``bounds`` where
    those begin and the last one ends: they say which prompt of several counts. ``context`` [1, L, width]: the prompt in
    place of the run's; ``seen``: the prompt that was used.
    """

    state: BlockState
    writes: bool = False
    number: int = 0
    bounds: tuple[int, ...] = (0, 1)
    context: torch.Tensor | None = None
    seen: torch.Tensor | None = None

    def prompt(self, given: torch.Tensor) -> torch.Tensor:
        """The prompt [B, L, width] to use where the run gives ``given``."""
        if self.context is not None:
            return self.context.to(given).expand(given.shape[0], -1, -1)
        self.seen = given[:1].detach()
        return given


def block_lengths(frames: int, block: int = BLOCK) -> list[int]:
    """Latent frames of each block: ``block``, and in the first what is left over too.

    ValueError where there are fewer than one block.
    """
    if block != int(block) or block < 1:
        raise ValueError(f"block_frames is {block}; give a whole number from 1, such as {BLOCK}")
    if frames < block:
        raise ValueError(
            f"the latent has {frames} frames, fewer than one block of {block}: make the video longer, or block_frames "
            "smaller"
        )
    return [block + frames % block, *[block] * (frames // block - 1)]


def block_bounds(frames: int, block: int = BLOCK) -> tuple[int, ...]:
    """The latent frame that each block begins with, and the number of all."""
    return (0, *itertools.accumulate(block_lengths(frames, block)))


def longest_block(frames: int, block: int = BLOCK) -> int:
    """The latent frames of the longest block that a video of ``frames`` may have: the first takes the remainder."""
    return min(frames, 2 * block - 1)


def prompt_blocks(starts: Sequence[float], bounds: Sequence[int]) -> list[int]:
    """The block with which each prompt begins: of those of ``bounds`` the nearest to its latent frame of ``starts``.

    ValueError for a first prompt that does not begin with the video, for one that begins after its end, and where two
    begin with one block or out of order.
    """
    if starts[0] != 0:
        raise ValueError("no prompt begins with the video: give the first one the start 0 in Sana Prompt Schedule")
    blocks = [min(range(len(bounds) - 1), key=lambda number: abs(bounds[number] - start)) for start in starts]
    for number, start in enumerate(starts[1:], 2):
        before, after = blocks[number - 2], blocks[number - 1]
        if start >= bounds[-1]:
            raise ValueError(f"prompt {number} begins after the end of the video: make the video longer")
        if after <= before:
            raise ValueError(
                f"prompt {number} begins with block {after + 1} of {len(bounds) - 1}, and prompt {number - 1} with "
                f"block {before + 1}: a prompt lasts a block at least, so move their starts apart, in order, with Sana "
                "Prompt Schedule"
            )
    return blocks


STARTS = "sana_start"
"""The name of a prompt's first frame among its options in a CONDITIONING."""


def start_of(options: Mapping, ratio: int) -> float:
    """The latent frame that a prompt begins with, of ``ratio`` frames each after the first one."""
    frame = options.get(STARTS, 0.0)
    return 0.0 if frame < 1 else (frame - 1) / ratio + 1


def prompt_of(starts: Sequence[float], call: BlockCall) -> int:
    """Which of the prompts that begin at the latent frames ``starts`` counts for a call."""
    return sum(block <= call.number for block in prompt_blocks(starts, call.bounds)) - 1


def parse_times(text: str) -> torch.Tensor:
    """SIGMAS of timesteps such as ``1000, 960, 889, 727``: each over 1000, then 0. ValueError says what is wrong."""
    try:
        times = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        times = []
    falls = all(before > after for before, after in zip(times, times[1:]))
    if not times or not falls or not all(math.isfinite(time) and 0 < time <= STEPS_IN_TRAINING for time in times):
        raise ValueError(
            f"timesteps is {text[:80]!r}; give falling numbers from {STEPS_IN_TRAINING} down to above 0, such as "
            f"{', '.join(map(str, TIMES))}"
        )
    return torch.tensor([*times, 0.0], dtype=torch.float64).div(STEPS_IN_TRAINING).float()


def carrying(extra_args: dict | None, call: BlockCall) -> dict:
    """A sampler's ``extra_args`` with a BlockCall for the network, in a new dictionary."""
    given = extra_args or {}
    options = given.get("model_options") or {}
    transformer = {**options.get("transformer_options", {}), KEY: call}
    return {**given, "model_options": {**options, "transformer_options": transformer}}


def call_in(transformer_options: dict | None) -> BlockCall | None:
    """The BlockCall that a sampler gave, or None."""
    return (transformer_options or {}).get(KEY)


@torch.no_grad()
def sample_blocks(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    noise_sampler=None,
    *,
    block_frames: int = BLOCK,
    cached_blocks: int = 0,
    recache: bool = True,
    state: BlockState | None = None,
    generator: torch.Generator | None = None,
    reported: tuple[int, int] | None = None,
):
    """The blocks of ``x`` [B, C, T, h, w], one after another. k-diffusion's signature, and options.

    ``cached_blocks``: how many blocks before count (0: all). ``recache``: a new prompt writes the block before it once
    more. ``state``: what to continue from, changed in place; None for a new video. ``generator``: the noise of each
    block, its start and then its steps; without one ``x`` holds the starts, and the steps' noise follows from the seed.
    ``reported``: the steps that ``callback`` was told before, and how many there are; without them the steps of all
    blocks count as those between two ``sigmas``.
    """
    check_settings(sigmas, cached_blocks)
    state = BlockState(cached_blocks=cached_blocks) if state is None else state
    check_state(state, x, cached_blocks)
    run = _Run(model, extra_args, sigmas, state, recache, block_bounds(x.shape[2], block_frames))
    run.steps = _Steps(callback, len(sigmas) - 1, (len(sigmas) - 1) * (len(run.bounds) - 1), reported)
    noise = generator or seeded_generator((extra_args or {}).get("seed") or 0)
    blocks = []
    for number, block in enumerate(x.split(block_lengths(x.shape[2], block_frames), dim=2)):
        run.write_last(number)
        blocks.append(run.sample(number, block, noise, fresh=generator is not None))
    state.noise = noise.get_state()
    video = torch.cat(blocks, dim=2)
    run.steps.finish(x, sigmas, video)
    return video


def check_settings(sigmas, cached_blocks: int) -> None:
    """ValueError for noise levels or a number of blocks that no long video has."""
    check_sigmas(sigmas)
    if len(sigmas) < 2 or float(sigmas[-1]) != 0:
        raise ValueError("the noise levels of a block must end with 0: use Sana Long Video Sigmas")
    if cached_blocks != int(cached_blocks) or cached_blocks < 0:
        raise ValueError(f"cached_blocks is {cached_blocks}; give 0 for all blocks, or how many of the last ones")


def check_state(state: BlockState, x, cached_blocks: int) -> None:
    """ValueError for a state that does not go with latents like ``x`` [B, C, T, h, w]."""
    if state.last is not None:
        had, given = [list(s[:2] + s[3:]) for s in (state.last.shape, x.shape)]
        if had != given:
            raise ValueError(
                f"the state is of {had[0]} video(s) of {had[3]} x {had[2]} latent cells with {had[1]} channels, and "
                f"the latent of {given[0]} of {given[3]} x {given[2]} with {given[1]}: give a latent of the state's "
                "size, or no state"
            )
    if state.cached_blocks != cached_blocks:
        raise ValueError(
            f"the state was made with cached_blocks {state.cached_blocks}, not {cached_blocks}: set cached_blocks to "
            f"{state.cached_blocks} to continue"
        )


@dataclass
class _Steps:
    """Tells a callback how far a run of ``count`` steps is: as ``total`` steps, or as some of those in ``reported``."""

    callback: Callable | None
    total: int
    count: int
    reported: tuple[int, int] | None
    done: int = 0

    def tell(self, x, sigma, denoised) -> None:
        if self.callback is not None:
            step = self.done * self.total // self.count if self.reported is None else self.reported[0] + self.done
            self.callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        self.done += 1

    def finish(self, x, sigmas, video) -> None:
        """The whole video at the end: ComfyUI takes the last one as its denoised output."""
        if self.callback is not None and self.reported is None and self.count > self.total:
            last = {"x": x, "i": self.total - 1, "sigma": sigmas[-2], "sigma_hat": sigmas[-2], "denoised": video}
            self.callback(last)


@dataclass
class _Run:
    model: Callable
    extra_args: dict | None
    sigmas: torch.Tensor
    state: BlockState
    recache: bool
    bounds: tuple[int, ...]
    steps: Any = None

    def _call(self, x, sigma, call: BlockCall):
        return self.model(x, sigma * x.new_ones([x.shape[0]]), **carrying(self.extra_args, call))

    def write_last(self, number: int) -> None:
        """Put the newest block into the state, with the prompt of block ``number`` or, unless ``recache``, its own."""
        state, last = self.state, self.state.last
        if last is None:
            return
        own = None if self.recache else state.context
        call = BlockCall(state, True, number, self.bounds, context=own)
        self._call(last.to(self.sigmas.device), self.sigmas[-1], call)
        state.last = None

    def sample(self, number: int, x, generator: torch.Generator, fresh: bool) -> torch.Tensor:
        """The clean block in place of ``x`` [B, C, F, h, w]: with ``fresh`` its start comes from the generator too."""
        call = BlockCall(self.state, False, number, self.bounds)
        start = draw(generator, x.shape)
        x = to_device(start, x.device) if fresh else x
        for sigma, following in zip(self.sigmas, self.sigmas[1:]):
            x0 = self._call(x, sigma, call)
            self.steps.tell(x, sigma, x0)
            if following > 0:
                x = (1 - following) * x0 + following * to_device(draw(generator, x0.shape), x0.device)
        self.state.last, self.state.context = x0, call.seen
        return x0
