"""Train the demo's AutoencoderDC: SANA's 32-channel latent at 1/32 of the size, small enough to ship.

    python demo/train_autoencoder.py --output demo/models/diffusers/sana-sprint-demo

Images are rendered from the language (language.py) for every batch, with shapes of random size and
position, so nothing is read from disk and training is reproducible from its seed.
Most steps use crops of 128 pixels around the shapes' edges, the last ones whole images.
Loss: L1 + L2 + L1 of the horizontal and vertical differences (for sharp edges) + a small L2 on the
latents. Noise is added to the latent before decoding, so that small errors of a sampler are not visible.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from language import COLOURS, PLACES, SHAPES, SIZE, Scene, render

CHANNELS = (16, 32, 64, 64, 64, 64)
STAGES = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
SCALES = ((), (), (), (5,), (5,), (5,))


def build():
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        latent_channels=32,
        attention_head_dim=16,
        encoder_block_types=STAGES,
        decoder_block_types=STAGES,
        encoder_block_out_channels=CHANNELS,
        decoder_block_out_channels=CHANNELS,
        encoder_layers_per_block=(1, 1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 2, 2, 1, 1),
        encoder_qkv_multiscales=SCALES,
        decoder_qkv_multiscales=SCALES,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
    )


def random_image(rng: random.Random) -> torch.Tensor:
    """A scene of the language; half of them with another position and size of the shape."""
    colour, background = rng.sample(list(COLOURS), 2)
    scene = Scene(colour, rng.choice(SHAPES), rng.choice(list(PLACES)), background)
    if rng.random() < 0.5:
        return render(scene)
    centre = (rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85))
    return render(scene, radius=rng.uniform(0.1, 0.3), centre=centre)


def random_crop(rng: random.Random, size: int) -> torch.Tensor:
    """A random image, cropped to ``size`` pixels around an edge."""
    image = random_image(rng)
    full = image.shape[-1]
    if size == full:
        return image
    edges = (image[:, :, 1:] - image[:, :, :-1]).abs().sum(0).nonzero()
    y, x = edges[rng.randrange(len(edges))].tolist()
    top = min(max(y - rng.randrange(size), 0), full - size)
    left = min(max(x - rng.randrange(size), 0), full - size)
    return image[:, top : top + size, left : left + size]


def differences(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def loss_of(model, images: torch.Tensor, noise: float, generator: torch.Generator):
    latent = model.encode(images).latent.float()
    jitter = torch.randn(latent.shape, generator=generator) * noise * latent.detach().std()
    decoded = model.decode(latent + jitter).sample.float()
    error = decoded - images
    edges = sum(d.abs().mean() for d in differences(error))
    loss = error.abs().mean() + error.square().mean() + 2.0 * edges + 1e-4 * latent.square().mean()
    return loss, error.detach().abs().mean().item() / 2


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


class Average:
    """Exponential moving average of a module's weights."""

    def __init__(self, module, decay: float):
        self.module, self.decay = module, decay
        self.shadow = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    def update(self):
        for name, value in self.module.state_dict().items():
            self.shadow[name].lerp_(value.float(), 1 - self.decay)

    def apply(self):
        self.module.load_state_dict(self.shadow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--whole", type=int, default=300, help="steps at the end on whole images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    model = build().to(memory_format=torch.channels_last)
    average = Average(model, 0.99)
    optimiser = torch.optim.AdamW(model.parameters(), lr=arguments.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    curve, started = [], time.time()
    for step in range(arguments.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.rate)
        size = SIZE if step >= arguments.steps - arguments.whole else SIZE // 2
        images = torch.stack([random_crop(rng, size) for _ in range(arguments.batch)]) * 2 - 1
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss, error = loss_of(model, images, 0.08, generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update()
        curve.append((step, loss.item(), error))
        if step % 20 == 0:
            print(f"{step} loss {loss.item():.4f} error {error:.4f} {time.time() - started:.0f} s", flush=True)
        if step % 300 == 299:
            save(model, average, curve, arguments, generator)
    save(model, average, curve, arguments, generator)


def save(model, average: Average, curve, arguments, generator) -> None:
    """Write vae/ with the averaged weights in bfloat16 and scaling_factor 1 / std of the latents."""
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    average.apply()
    with torch.no_grad():
        rng = random.Random(0)
        latent = model.encode(torch.stack([random_image(rng) for _ in range(32)]) * 2 - 1).latent
    model.register_to_config(scaling_factor=round(1.0 / latent.std().item(), 5))
    copy = build().to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.register_to_config(scaling_factor=model.config.scaling_factor)
    copy.save_pretrained(arguments.output / "vae")
    model.load_state_dict(trained)
    (arguments.output / "autoencoder_curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
