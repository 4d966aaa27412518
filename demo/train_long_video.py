"""Train the video demo's SANA-Video further as LongSANA, block by block, and write it as a diffusers folder.

    python demo/train_long_video.py --output demo/models/diffusers/sana-video-long-demo

Films are of the language in long_language.py, encoded once by the video demo's autoencoder. The transformer starts from
the video demo's; Gemma-2 and the autoencoder are the video demo's, unchanged.

A film's blocks are learned in one pass (LongSANA, arXiv 2509.24695): each block once noisy, at one of the four
timesteps of its sampler, and once clean, at time 0, as what later blocks attend to. A clean block has the prompt of
the block after it, as where the sampler recaches. What the blocks before are, for a part of the films, is what the
network itself sampled (self forcing, arXiv 2506.08009), so that it learns to continue from its own errors. Given its
prompt and the blocks before, a block of the language is certain: plain flow matching is then right in a few steps. The
loss is train_video.py's.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import time
import types
from pathlib import Path

import torch
from long_language import BLOCK, film, random_story
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.samplers.block_causal import KEY, TIMES, block_bounds, parse_times, sample_blocks
from torch.nn import functional
from train_autoencoder import Average, learning_rate
from train_sprint import PromptEncoder, build_optimisers, instruction_text
from train_video import build_transformer, phrasings, saliency
from video_language import Move

BASE = Path(__file__).parent / "models" / "diffusers" / "sana-video-demo"
RATIO = 4
"""Frames of a latent frame."""

CELLS = 64
"""Tokens of a latent frame."""

SHORT, LONG = 4, 8
"""Blocks of most films, and of every fourth."""


class Film:
    """``moves``: of each block; ``latents`` [16, T, 16, 16]; ``own``: the same as the network sampled them, or None."""

    def __init__(self, moves: list[Move], autoencoder):
        self.moves, self.own = moves, None
        bounds = block_bounds(BLOCK * len(moves) + 1, BLOCK)
        frames = [move for move, n in zip(moves, lengths(bounds)) for _ in range(RATIO * n)][RATIO - 1 :]
        self.latents = encoded(autoencoder, film(frames))

    def past(self, frames: int, own: bool) -> torch.Tensor:
        """Latents [16, frames, 16, 16] to attend to: with ``own`` those that the network sampled, if it did."""
        sampled = own and self.own is not None and self.own.shape[1] >= frames
        return (self.own if sampled else self.latents)[:, :frames]


def lengths(bounds) -> list[int]:
    return [end - begin for begin, end in zip(bounds, bounds[1:])]


def encoded(autoencoder, frames: torch.Tensor) -> torch.Tensor:
    """Normalised latents [16, T, 16, 16] of [frames, 3, H, W]."""
    mean, std = (
        torch.tensor(value).view(-1, 1, 1, 1)
        for value in (autoencoder.config.latents_mean, autoencoder.config.latents_std)
    )
    clip = frames.transpose(0, 1)[None].to(autoencoder.dtype) * 2 - 1
    with torch.no_grad():
        return (autoencoder.encode(clip).latent_dist.mode()[0].float() - mean) / std


class BlockAttention:
    """Linear attention of the blocks of films [2 B, tokens, width], the first half noisy and the second clean.

    Both attend to their own block and to the clean ones before it. ``bounds``: the first token of each block.
    """

    bounds: tuple[int, ...] = ()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        parts = (functional.relu(query), functional.relu(key), attn.to_v(hidden_states))
        with torch.autocast("cpu", enabled=False):
            query, key, value = (part.float().unflatten(2, (attn.heads, -1)) for part in parts)
            out = self._attended(query, key, value, *rotary_emb)
        return attn.to_out[0](out.flatten(2).to(hidden_states.dtype))

    def _attended(self, query, key, value, cos, sin):
        turns = torch.complex(cos[0, :, 0, 0::2], sin[0, :, 0, 1::2])[:, None]
        parts = query, key, turned(query, turns), turned(key, turns), value
        sizes = [end - begin for begin, end in zip(self.bounds, self.bounds[1:])]
        clean, outputs, past_sums, past_total = len(query) // 2, [], 0.0, 0.0
        for q, k, q_turned, k_turned, v in zip(*(part.split(sizes, dim=1) for part in parts)):
            sums, total = torch.einsum("bnhd,bnhe->bhde", k_turned, v), k.sum(1, keepdim=True)
            bottom = (q * (total + past_total)).sum(-1, keepdim=True)
            outputs.append(torch.einsum("bnhd,bhde->bnhe", q_turned, sums + past_sums) / (bottom + 1e-15))
            past_sums = past_sums + sums[clean:].repeat(2, 1, 1, 1)
            past_total = past_total + total[clean:].repeat(2, 1, 1, 1)
        return torch.cat(outputs, dim=1)


def turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """[B, tokens, heads, channels], whose channels are pairs, rotated by position."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


def block_feed_forward(self, hidden_states):
    """GLUMBTempConv of such films: left of a block is the clean frame before it, and right of it nothing."""
    batch, frames, height, width, _ = hidden_states.shape
    maps = hidden_states.flatten(0, 1).permute(0, 3, 1, 2)
    values, gate = self.conv_depth(functional.silu(self.conv_inverted(maps))).chunk(2, dim=1)
    maps = self.conv_point(values * functional.silu(gate)).unflatten(0, (batch, frames)).permute(0, 1, 3, 4, 2)
    before, after = maps.roll(1, dims=1), maps.roll(-1, dims=1)
    borders = torch.zeros(frames, dtype=torch.bool)
    borders[list(self.bounds[:-1])] = True
    wide = borders.view(-1, 1, 1, 1)
    before = torch.where(wide, before[batch // 2 :].repeat(2, 1, 1, 1, 1), before)
    before = torch.cat([torch.zeros_like(before[:, :1]), before[:, 1:]], dim=1)
    after = torch.where(wide.roll(-1, dims=0), 0.0, after)
    weights = self.conv_temp.weight[..., 0].unbind(-1)
    return maps + sum(functional.linear(one, weight) for one, weight in zip((before, maps, after), weights))


def learn_by_block(transformer):
    """Make the layers of diffusers' SanaVideoTransformer3DModel that look along time go block by block."""
    attention = BlockAttention()
    for block in transformer.transformer_blocks:
        block.attn1.processor = attention
        block.ff.forward = types.MethodType(block_feed_forward, block.ff)
    return transformer


def set_bounds(transformer, bounds: tuple[int, ...]) -> None:
    """The blocks of the next call, in latent frames."""
    for block in transformer.transformer_blocks:
        block.attn1.processor.bounds = tuple(CELLS * bound for bound in bounds)
        block.ff.bounds = bounds


class Prompts:
    """The states of prompts, each computed once: Gemma-2 does not learn here."""

    def __init__(self, encoder: PromptEncoder):
        self.encoder, self.known = encoder, {}

    def __call__(self, prompt: str) -> torch.Tensor:
        """[words, width]."""
        if prompt not in self.known:
            with torch.no_grad():
                self.known[prompt] = self.encoder([prompt])[0][0]
        return self.known[prompt]

    def of_films(self, stories: list[list[str]], bounds) -> tuple[torch.Tensor, torch.Tensor]:
        """States [2 B, words, width] and what is added to a token's attention to them [2 B, tokens, words].

        ``stories``: a prompt for each block. A noisy block sees its own, a clean one that of the block after it.
        """
        rows = [story[number:] for number in (0, 1) for story in stories]
        rows = [row + row[-1:] * (len(bounds) - 1 - len(row)) for row in rows]
        words = [[self(prompt) for prompt in row] for row in rows]
        states = torch.nn.utils.rnn.pad_sequence([torch.cat(row) for row in words], batch_first=True)
        of_token = torch.arange(len(bounds) - 1).repeat_interleave(torch.tensor(lengths(bounds)) * CELLS)
        bias = torch.full((len(rows), len(of_token), states.shape[1]), -10000.0)
        for row, parts in zip(bias, words):
            of_word = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
            row[:, : len(of_word)].masked_fill_(of_token[:, None] == of_word, 0.0)
        return states, bias


def training_loss(transformer, prompts: Prompts, films: list[Film], blocks: int, rng, generator, own: float):
    """The loss of the first ``blocks`` of films, and the mean error of their x0; ``own``: how often the blocks before
    are those that the network sampled."""
    bounds = block_bounds(BLOCK * blocks + 1, BLOCK)
    truth = torch.stack([one.latents[:, : bounds[-1]] for one in films])
    past = torch.stack([one.past(bounds[-1], rng.random() < own) for one in films])
    stories = [[rng.choice(phrasings(move)) for move in one.moves[:blocks]] for one in films]
    states, bias = prompts.of_films(stories, bounds)
    chosen = torch.multinomial(torch.tensor([2.0, 1, 1, 1]), len(films) * blocks, True, generator=generator)
    times = torch.tensor(TIMES)[chosen].view(len(films), blocks).float()
    times = times.repeat_interleave(torch.tensor(lengths(bounds)), dim=1)[:, None, :, None, None]
    level, z = times / 1000, torch.randn(truth.shape, generator=generator)
    x = torch.cat([(1 - level) * truth + level * z, past])
    of_token = torch.cat([times, torch.zeros_like(times)]).expand(-1, -1, -1, 8, 8)
    set_bounds(transformer, bounds)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = transformer(x, states, timestep=of_token, encoder_attention_mask=bias, return_dict=False)[0]
    error = velocity[: len(films)].float() - (z - truth)
    weight = saliency(truth)
    loss = (weight * (level * error).square()).mean() + 0.1 * (weight * error.square()).mean()
    return loss, (level * error).abs().mean().item()


@torch.no_grad()
def sample_own(network, prompts: Prompts, films: list[Film], blocks: int, generator: torch.Generator) -> None:
    """Sample films as Sana Long Video Sample does; ``network``: the product's, with the weights so far."""
    stories = [[prompts(one.moves[number].prompt) for one in films] for number in range(blocks)]

    def denoised(x, sigma, model_options):
        call = model_options["transformer_options"][KEY]
        words = stories[call.number]
        states = torch.nn.utils.rnn.pad_sequence(words, batch_first=True)
        mask = torch.tensor([[i < len(one) for i in range(states.shape[1])] for one in words]).float()
        out = network(x, states, 1000 * sigma, encoder_attention_mask=mask, return_dict=False, block=call)[0]
        return x - sigma.view(-1, 1, 1, 1, 1) * out

    shape = (len(films), 16, BLOCK * blocks + 1, 16, 16)
    sigmas = parse_times(", ".join(map(str, TIMES)))
    videos = sample_blocks(denoised, torch.zeros(shape), sigmas, block_frames=BLOCK, generator=generator)
    for one, latents in zip(films, videos):
        one.own = latents


class Pool:
    """The films so far: one more at each step until there are ``count``, every fourth of them long."""

    def __init__(self, autoencoder, rng: random.Random, count: int):
        self.autoencoder, self.rng, self.count = autoencoder, rng, count
        self.films: list[Film] = []

    def grow(self) -> None:
        if len(self.films) < self.count:
            blocks = LONG if len(self.films) % 4 == 3 else SHORT
            self.films.append(Film(random_story(self.rng, blocks), self.autoencoder))

    def chosen(self, blocks: int, count: int) -> list[Film]:
        """Films of at least so many blocks."""
        return self.rng.sample([one for one in self.films if len(one.moves) >= blocks], count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--begin", type=Path, default=BASE, help="the folder whose transformer to start from")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--films", type=int, default=160)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--own", type=float, default=0.5, help="how often the past is what the network sampled")
    parser.add_argument("--own-from", type=int, default=300, help="the step from which on it is")
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()

    from diffusers import AutoencoderKLWan, SanaVideoPipeline, SanaVideoTransformer3DModel
    from transformers import AutoModel, AutoTokenizer

    rng, generator = random.Random(arguments.seed), torch.Generator().manual_seed(arguments.seed)
    trained = SanaVideoTransformer3DModel.from_pretrained(arguments.begin / "transformer").float()
    runner = use_fast_transformer(copy.deepcopy(trained).eval().requires_grad_(False))
    transformer = learn_by_block(trained)
    gemma = AutoModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE / "tokenizer")
    prompts = Prompts(PromptEncoder(tokenizer, gemma, instruction_text(SanaVideoPipeline)))
    autoencoder = AutoencoderKLWan.from_pretrained(BASE / "vae", torch_dtype=torch.bfloat16)
    pool, average = Pool(autoencoder, rng, arguments.films), Average(transformer, 0.99)
    optimisers = build_optimisers([transformer], arguments.rate)
    for _ in range(min(16, arguments.films)):
        pool.grow()
    curve, started = [], time.time()
    for step in range(arguments.steps):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, arguments.steps, group["peak"])
        pool.grow()
        blocks = rng.choice([2, 3, 3, 4, 4, 8])
        films = pool.chosen(blocks, max(2, 12 // blocks))
        if step >= arguments.own_from and step % 8 == 0:
            runner.load_state_dict(transformer.state_dict())
            blocks = rng.choice([SHORT, LONG])
            films = pool.chosen(blocks, 3)
            sample_own(runner, prompts, films, blocks, generator)
        own = arguments.own if step >= arguments.own_from else 0.0
        loss, error = training_loss(transformer, prompts, films, blocks, rng, generator, own)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        average.update()
        curve.append((step, loss.item(), error))
        if step % 10 == 0:
            print(f"{step} loss {loss.item():.4f} error {error:.4f} {time.time() - started:.0f} s", flush=True)
        if step % 50 == 49:
            save(average, arguments.output, curve)
    save(average, arguments.output, curve)


def save(average: Average, folder: Path, curve) -> None:
    """Write the averaged transformer in bfloat16 with LongSANA's class name, beside the video demo's other parts."""
    network = build_transformer()
    network.load_state_dict(average.shadow)
    network.to(torch.bfloat16).save_pretrained(folder / "transformer")
    plain, own = "SanaVideoTransformer3DModel", "SanaVideoCausalTransformer3DModel"
    config, index = folder / "transformer" / "config.json", (BASE / "model_index.json").read_text()
    config.write_text(config.read_text().replace(plain, own))
    (folder / "model_index.json").write_text(index.replace(plain, own))
    for part in ("tokenizer", "text_encoder", "vae", "scheduler"):
        shutil.copytree(BASE / part, folder / part, dirs_exist_ok=True)
    (folder / "long_video_curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
