"""Encode and decode a large image in tiles and untiled: time, seams, and the error of the autoencoder.

    python benchmarks/tiles.py [--size 4096] [--tile 1024]

The demo VAE in float32 on the CPU. The untiled passes need about 16 GB of memory at 4096 pixels.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import big_images
from sana_nodes.networks.tiling import Tiling


def timed(what: str, call):
    start = time.perf_counter()
    result = call()
    print(f"{what:<24} {time.perf_counter() - start:8.1f} s", flush=True)
    return result


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--tile", type=int, default=1024)
    arguments = parser.parse_args()
    autoencoder, pixels = big_images.demo_autoencoder(), big_images.image(arguments.size)
    tiling = Tiling(arguments.tile, torch.device("cpu"), torch.float32)
    latents = timed("encode, untiled", lambda: autoencoder.encode(pixels).latent)
    tiled_latents = timed("encode, tiles", lambda: tiling.encode(autoencoder, pixels))
    whole = timed("decode, untiled", lambda: autoencoder.decode(latents).sample)
    tiled = timed("decode, tiles", lambda: tiling.decode(autoencoder, tiled_latents))
    print(f"latents differ by at most {(tiled_latents - latents).abs().max():.2e} of {latents.abs().max():.1f}")
    print(f"pixels differ by at most {(tiled - whole).abs().max() * 127.5:.4f} of 255")
    print(f"neighbours differ by at most {big_images.seam(tiled, whole):.4f} of 255 more than untiled")
    print(f"the untiled image differs from the original by {(whole - pixels).abs().mean() * 127.5:.2f} on average")


if __name__ == "__main__":
    main()
