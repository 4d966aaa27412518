"""Big images of the demo language, and how far a seam stands out."""

from __future__ import annotations

import sys

import tiny
import torch

sys.path.insert(0, str(tiny.REPOSITORY / "demo"))

from language import COLOURS, SIZE, all_scenes, render


def demo_autoencoder():
    """The trained demo VAE, in float32."""
    from diffusers import AutoencoderDC

    return AutoencoderDC.from_pretrained(tiny.DEMO / "vae").float().eval()


def image(size: int) -> torch.Tensor:
    """[1, 3, size, size] in [-1, 1]: small scenes, below them one drawn large, and a flat area."""
    scenes = all_scenes()
    chosen = torch.randint(len(scenes), (size // SIZE, size // SIZE), generator=torch.Generator().manual_seed(0))
    rows = [torch.cat([render(scenes[int(number)]) for number in row], dim=2) for row in chosen]
    whole = torch.cat(rows, dim=1)
    half = size // 2
    whole[:, half:, :half] = render(scenes[7], half)
    whole[:, half:, half:] = torch.tensor(COLOURS["blue"]).div(255).view(3, 1, 1)
    return whole[None] * 2 - 1


def seam(tiled: torch.Tensor, whole: torch.Tensor) -> float:
    """How much more neighbouring pixels differ in ``tiled`` than in ``whole`` [1, 3, H, W], at worst, of 255.

    Everywhere, so at every border of tiles and in every overlap; pixels in [-1, 1] are cut to it first.
    """
    tiled, whole = (p.clamp(-1, 1).mul(127.5) for p in (tiled, whole))
    return max((tiled.diff(dim=dim).abs() - whole.diff(dim=dim).abs()).max().item() for dim in (2, 3))
