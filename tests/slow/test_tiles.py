"""DC-AE in tiles on an image of 2048 pixels."""

from __future__ import annotations

import big_images
import torch
from sana_nodes.networks.tiling import Tiling


@torch.no_grad()
def test_two_thousand_pixels_have_no_seams():
    """The trained demo VAE, there and back in tiles of 1024 pixels (4096 pixels: benchmarks/tiles.py)."""
    autoencoder, pixels = big_images.demo_autoencoder(), big_images.image(2048)
    whole = autoencoder.decode(autoencoder.encode(pixels).latent).sample
    tiles = Tiling(1024, torch.device("cpu"), torch.float32)
    tiled = tiles.decode(autoencoder, tiles.encode(autoencoder, pixels))
    assert big_images.seam(tiled, whole) < 0.1
