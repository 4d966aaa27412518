"""Train the video demo's Gemma-2, tokenizer and SANA-Video transformer, and write them as a diffusers folder.

    python demo/train_video_autoencoder.py --output demo/models/diffusers/sana-video-demo
    python demo/train_video.py --output demo/models/diffusers/sana-video-demo

A prompt of the language (video_language.py) has one video, so plain denoising with flow matching is
enough: x_t = (1 - sigma) * x0 + sigma * z, and the network predicts z - x0 (SANA-Video, arXiv 2509.24695).
A quarter of every batch has its first frame given, at timestep 0 as in SanaImageToVideoPipeline, with the
shape's line moved aside, which only the first frame shows. The rest is as in train_sprint.py: half of the
noise levels are 1, the noise grows over the first steps, latent cells of the shape have a higher weight,
and Muon trains matrices. A tenth of the prompts is empty or the negative prompt, so that guidance works.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from train_autoencoder import Average, learning_rate
from train_sprint import WIDTH, PromptEncoder, build_optimisers, build_text_encoder, build_tokenizer, instruction_text
from video_language import Move, all_moves, film

NEGATIVE = (
    "a chaotic sequence with misshapen, deformed limbs in heavy motion blur, sudden disappearance, jump cuts, jerky "
    "movements, rapid shot changes, frames out of sync, inconsistent character shapes, temporal artifacts, jitter, "
    "and ghosting effects, creating a disorienting visual experience."
)
ASIDE = 0.2
SHIFT = 8.0


def phrasings(move: Move) -> list[str]:
    """The prompt of a video and variants of it, in lower case as in the pipeline."""
    prompts = [
        move.prompt,
        move.prompt,
        move.prompt,
        f"{move.colour} {move.shape} moving {move.direction}, {move.background} background",
        move.prompt.replace("moving", "moving to the" if move.direction in ("left", "right") else "going"),
    ]
    return [f"{prompt} motion score: {score}." for prompt in prompts for score in (30, 10)] + prompts


def build_transformer():
    from diffusers import SanaVideoTransformer3DModel

    transformer = SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=5,
        num_cross_attention_heads=4,
        cross_attention_head_dim=32,
        cross_attention_dim=128,
        caption_channels=WIDTH,
        mlp_ratio=2.5,
        patch_size=(1, 2, 2),
        sample_size=30,
    )
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            block.scale_shift_table[[2, 5]] = 1.0  # open gates, as in train_sprint.py
    return transformer


def encode_videos(autoencoder, videos: list[tuple[Move, float]]) -> torch.Tensor:
    """Normalised latents [N, 16, 5, 16, 16] of moves, each with the offset of its line."""
    mean = torch.tensor(autoencoder.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(autoencoder.config.latents_std).view(1, -1, 1, 1, 1)
    latents = []
    with torch.no_grad():
        for i in range(0, len(videos), 8):
            clips = torch.stack([film(move, aside).transpose(0, 1) for move, aside in videos[i : i + 8]])
            latents.append(autoencoder.encode(clips * 2 - 1).latent_dist.mode().float())
    return (torch.cat(latents) - mean) / std


def saliency(latents: torch.Tensor) -> torch.Tensor:
    """The loss weight of each cell: 1 on the background, up to 9 on the path of the shape."""
    background = latents.flatten(2).median(dim=2).values[..., None, None, None]
    return 1 + 8 * (latents - background).square().mean(1, keepdim=True).clamp(max=1.0)


def sample_noise_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels as in the sampler: half of them 1, the others shifted towards 1."""
    level = torch.rand(count, generator=generator)
    level = SHIFT * level / (1 + (SHIFT - 1) * level)
    level[torch.rand(count, generator=generator) < 0.5] = 1.0
    return level


def training_loss(transformer, encoder, videos, moves, rng, generator, batch, noise_strength):
    """``videos``: the latent of each of ``moves``; those of the language first, then those with an offset."""
    from_image = torch.arange(batch) < batch // 4
    centred = len(all_moves())
    chosen = [rng.randrange(len(moves)) if image else rng.randrange(centred) for image in from_image]
    x0 = videos[chosen]
    prompts = [rng.choice(phrasings(moves[i])) for i in chosen]
    prompts = [rng.choice(["", NEGATIVE]) if rng.random() < 0.1 else prompt for prompt in prompts]
    states, mask = encoder.plain(prompts) if rng.random() < 0.2 else encoder(prompts)
    level = sample_noise_levels(batch, generator)
    z = torch.randn(x0.shape, generator=generator)
    z[level == 1.0] *= noise_strength
    free = torch.ones(batch, 1, *x0.shape[2:])
    free[from_image, :, 0] = 0.0
    wide = level.view(-1, 1, 1, 1, 1)
    x = torch.where(free > 0, (1 - wide) * x0 + wide * z, x0)
    times = 1000 * wide * free[..., ::2, ::2]
    velocity = transformer(x, states, timestep=times, encoder_attention_mask=mask, return_dict=False)[0]
    error = (velocity - (z - x0)) * free
    weight = saliency(x0)
    loss = (weight * (wide * error).square()).mean() + 0.1 * (weight * error.square()).mean()
    return loss, (wide * error).abs().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--begin", type=Path, help="a folder with weights to start from")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--quiet", type=int, default=700, help="steps until the noise at level 1 has full strength")
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()

    from diffusers import AutoencoderKLWan, SanaVideoPipeline
    from transformers import AutoTokenizer

    torch.manual_seed(arguments.seed)
    rng, generator = random.Random(arguments.seed), torch.Generator().manual_seed(arguments.seed)
    instruction, moves = instruction_text(SanaVideoPipeline), all_moves()
    corpus = [instruction.lower(), instruction, NEGATIVE, *(prompt for move in moves for prompt in phrasings(move))]
    build_tokenizer(arguments.output / "tokenizer", corpus)
    tokenizer = AutoTokenizer.from_pretrained(arguments.output / "tokenizer")
    gemma, transformer = build_text_encoder(len(tokenizer)), build_transformer()
    if arguments.begin is not None:
        for module, part in ((gemma, "text_encoder"), (transformer, "transformer")):
            trained = type(module).from_pretrained(arguments.begin / part).state_dict()
            module.load_state_dict({name: value.float() for name, value in trained.items()})
    encoder = PromptEncoder(tokenizer, gemma, instruction)
    scenes = [(move, 0.0) for move in moves]
    scenes += [(move, rng.uniform(-ASIDE, ASIDE)) for move in rng.sample(moves, 500)]
    videos = encode_videos(AutoencoderKLWan.from_pretrained(arguments.output / "vae"), scenes)
    moves = [move for move, _ in scenes]
    weights = [*gemma.parameters(), *transformer.parameters()]
    averages = [Average(gemma, 0.99), Average(transformer, 0.99)]
    optimisers = build_optimisers([gemma, transformer], arguments.rate)
    print(f"{sum(w.numel() for w in weights)} weights, {len(tokenizer)} tokens, {encoder.count} of instruction")
    curve, started = [], time.time()
    for step in range(arguments.steps):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, arguments.steps, group["peak"])
        strength = min(1.0, step / arguments.quiet)
        loss, error = training_loss(transformer, encoder, videos, moves, rng, generator, arguments.batch, strength)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        for average in averages:
            average.update()
        curve.append((step, loss.item(), error))
        if step % 20 == 0:
            print(f"{step} loss {loss.item():.4f} error {error:.4f} {time.time() - started:.0f} s", flush=True)
        if step % 200 == 199:
            save(gemma, transformer, averages, arguments.output, curve)
    save(gemma, transformer, averages, arguments.output, curve)


def save(gemma, transformer, averages, folder: Path, curve) -> None:
    """Write the averaged weights in bfloat16, the scheduler and model_index.json: a folder for diffusers."""
    from diffusers import DPMSolverMultistepScheduler

    kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in (gemma, transformer)]
    for average in averages:
        average.apply()
    copies = [build_text_encoder(gemma.config.vocab_size), build_transformer()]
    for copy, trained in zip(copies, (gemma, transformer)):
        copy.load_state_dict(trained.state_dict())
        copy.to(torch.bfloat16)
    copies[0].save_pretrained(folder / "text_encoder")
    copies[1].save_pretrained(folder / "transformer")
    for module, weights in zip((gemma, transformer), kept):
        module.load_state_dict(weights)
    scheduler = DPMSolverMultistepScheduler(flow_shift=SHIFT, use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "SanaVideoPipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"],
        "transformer": ["diffusers", "SanaVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / "video_curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
