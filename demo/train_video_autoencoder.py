"""Train the video demo's AutoencoderKLWan: Wan 2.1's latent (16 channels, 1/8 of the size, 1/4 of the frames).

    python demo/train_video_autoencoder.py --output demo/models/diffusers/sana-video-demo

Clips are rendered for every batch with shapes of the language (video_language.py) at random positions,
sizes and speeds. Training starts with crops of 64 pixels around the shape in single frames, then in
clips of five and of seventeen frames, and ends with whole frames. Loss as in train_autoencoder.py, plus
the differences between frames. Kernels start with unit gain and are trained by Muon as matrices with a
row per output channel: AdamW alone was several times slower.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from language import COLOURS, SHAPES, Scene, render
from torch.nn.utils import parametrize
from train_autoencoder import Average, differences, learning_rate
from video_language import FRAMES, SIZE


def build(**changes):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=12, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, **changes)


class Rows(torch.nn.Module):
    """A kernel stored as a matrix, as Muon requires."""

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape = shape

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.view(self.shape)

    def right_inverse(self, kernel: torch.Tensor) -> torch.Tensor:
        return kernel.flatten(1)


def prepare(model, begin: Path | None) -> None:
    """Unit gain for every convolution, or the weights in ``begin``; and each kernel as a matrix."""
    if begin is not None:
        model.load_state_dict({k: v.float() for k, v in type(model).from_pretrained(begin).state_dict().items()})
    for part in list(model.modules()):
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Conv3d)):
            if begin is None:
                torch.nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
                torch.nn.init.zeros_(part.bias)
            parametrize.register_parametrization(part, "weight", Rows(part.weight.shape))


def plain_weights(model) -> dict[str, torch.Tensor]:
    """The weights of a prepared model under their original names."""
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith(".parametrizations.weight.original"):
            name = name.removesuffix(".parametrizations.weight.original")
            value = model.get_submodule(name).weight.detach()
            name += ".weight"
        weights[name] = value.clone()
    return weights


def random_clip(rng: random.Random, frames: int, size: int) -> torch.Tensor:
    """A moving shape: [3, frames, size, size] in [-1, 1], cropped at a fixed position."""
    colour, background = rng.sample(list(COLOURS), 2)
    scene = Scene(colour, rng.choice(SHAPES), "in the centre", background)
    radius = 0.17 if rng.random() < 0.6 else rng.uniform(0.1, 0.3)
    speed = 0.5 / 16 if rng.random() < 0.6 else rng.uniform(0, 0.05)
    direction = rng.choice([(1, 0), (-1, 0), (0, 1), (0, -1)])
    x, y = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)
    clip = [
        render(scene, SIZE, radius, (x + i * speed * direction[0], y + i * speed * direction[1])) for i in range(frames)
    ]
    clip = torch.stack(clip, dim=1) * 2 - 1
    if size == SIZE:
        return clip
    edge = radius * SIZE
    left = int(min(max(x * SIZE + rng.uniform(-edge, edge) - size / 2, 0), SIZE - size))
    top = int(min(max(y * SIZE + rng.uniform(-edge, edge) - size / 2, 0), SIZE - size))
    return clip[..., top : top + size, left : left + size]


def decode(model, latents: torch.Tensor) -> torch.Tensor:
    """AutoencoderKLWan's decoding without its clamp, which has no gradient outside of its range."""
    model.clear_cache()
    latents = model.post_quant_conv(latents)
    parts = []
    for i in range(latents.shape[2]):
        model._conv_idx = [0]
        latent = latents[:, :, i : i + 1]
        parts.append(model.decoder(latent, feat_cache=model._feat_map, feat_idx=model._conv_idx, first_chunk=i == 0))
    model.clear_cache()
    return torch.cat(parts, dim=2)


def loss_of(model, clips: torch.Tensor, noise: float, generator: torch.Generator):
    latent = model.encode(clips).latent_dist.mode().float()
    jitter = torch.randn(latent.shape, generator=generator) * noise * latent.detach().std()
    error = decode(model, latent + jitter).float() - clips
    edges = sum(d.abs().mean() for d in differences(error))
    if clips.shape[2] > 1:
        edges = edges + (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    loss = error.abs().mean() + error.square().mean() + 2.0 * edges + 1e-4 * latent.square().mean()
    return loss, error.detach().abs().mean().item() / 2


def build_optimisers(model, rate: float) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim != 2]
    optimisers = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=rate / 20, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["peak"] = group["lr"]
    return optimisers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--begin", type=Path, help="a vae folder to start from")
    parser.add_argument("--images", type=int, default=500, help="steps on crops of single frames")
    parser.add_argument("--clips", type=int, default=500, help="steps on crops of five frames")
    parser.add_argument("--videos", type=int, default=450, help="steps on crops of seventeen frames")
    parser.add_argument("--whole", type=int, default=80, help="steps on seventeen whole frames")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate of Muon; AdamW's is 1/20 of it")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    model = build()
    print(f"{sum(w.numel() for w in model.parameters())} weights", flush=True)
    prepare(model, arguments.begin)
    average = Average(model, 0.99)
    optimisers = build_optimisers(model, arguments.rate)
    batches = [(1, SIZE // 2, 16)] * arguments.images + [(5, SIZE // 2, 6)] * arguments.clips
    batches += [(FRAMES, SIZE // 2, 2)] * arguments.videos + [(FRAMES, SIZE, 1)] * arguments.whole
    curve, started = [], time.time()
    for step, (frames, size, count) in enumerate(batches):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, len(batches), group["peak"])
        clips = torch.stack([random_clip(rng, frames, size) for _ in range(count)])
        with torch.autocast("cpu", torch.bfloat16, enabled=size < SIZE):  # torch 2.13 crashes in it at this size
            loss, error = loss_of(model, clips, 0.08, generator)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        average.update()
        curve.append((step, loss.item(), error))
        if step % 20 == 0:
            print(f"{step} loss {loss.item():.4f} error {error:.4f} {time.time() - started:.0f} s", flush=True)
        if step % 100 == 99:
            save(model, average, curve, arguments)
    save(model, average, curve, arguments)


def save(model, average: Average, curve, arguments) -> None:
    """Write vae/ with the averaged weights in bfloat16 and the latents' mean and standard deviation."""
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    average.apply()
    with torch.no_grad():
        rng = random.Random(0)
        clips = torch.stack([random_clip(rng, FRAMES, SIZE) for _ in range(12)])
        latent = model.encode(clips).latent_dist.mode().transpose(0, 1).flatten(1)
    mean, std = latent.mean(1), latent.std(1)
    copy = build(latents_mean=[round(v, 4) for v in mean.tolist()], latents_std=[round(v, 4) for v in std.tolist()])
    copy.load_state_dict(plain_weights(model))
    copy.to(torch.bfloat16).save_pretrained(arguments.output / "vae")
    model.load_state_dict(trained)
    (arguments.output / "video_autoencoder_curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
