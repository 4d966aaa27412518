"""What decoding SANA-Video's latents in bfloat16 changes, beside float32: the Wan VAE's default.

    python benchmarks/half_decoding.py

The demo's autoencoder decodes videos of the demo's language. The published size has random weights here and decodes
random latents: only how bfloat16 rounds in it is seen. Differences are of frames in [0, 1].
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from memory import CONFIGS, VAES
from sana_nodes.host.embedded.vae import Vae
from sana_nodes.model_loaders.vae import load_vae
from sana_nodes.networks.autoencoder import Autoencoder, use_fast_autoencoder

DEMO = Path(__file__).resolve().parents[1] / "demo"
WAN = "Wan 2.1 VAE"


def vae_in(dtype: torch.dtype, module, spec) -> Vae:
    made = use_fast_autoencoder(copy.deepcopy(module).to(dtype))
    return Vae(Autoencoder(made, spec), dtype, torch.device("cpu"))


def demo() -> tuple[torch.nn.Module, object, list[torch.Tensor]]:
    """The demo's autoencoder and the latents of four of its videos."""
    sys.path.append(str(DEMO))
    import video_language as language

    loaded = load_vae(DEMO / "models" / "diffusers" / "sana-video-demo" / "vae")
    exact = vae_in(torch.float32, loaded.module, loaded.spec)
    films = [language.film(move).movedim(-3, -1) for move in language.all_moves()[::12][:4]]
    return loaded.module, loaded.spec, [exact.encode(film) for film in films]


def published() -> tuple[torch.nn.Module, object, list[torch.Tensor]]:
    """The published size with random weights, and a latent of 3 frames of 128 x 128."""
    import diffusers

    torch.manual_seed(0)
    kind, config = CONFIGS[WAN]
    module = getattr(diffusers, kind)(**config).eval().requires_grad_(False)
    return module, VAES[WAN], [torch.randn(1, 16, 3, 16, 16)]


def difference(module, spec, latents: list[torch.Tensor]) -> dict[str, float]:
    """Of all frames: the root mean square, and the largest; ``spread``: the standard deviation of the frames."""
    wide, half = (vae_in(dtype, module, spec) for dtype in (torch.float32, torch.bfloat16))
    exact = torch.cat([wide.decode(latent).flatten() for latent in latents])
    error = torch.cat([half.decode(latent).flatten().float() for latent in latents]) - exact
    return {
        "rms": error.square().mean().sqrt().item(),
        "largest": error.abs().max().item(),
        "spread": exact.std().item(),
    }


@torch.no_grad()
def main() -> dict[str, dict[str, float]]:
    found = {}
    for name, make in {"demo": demo, "published size, random weights": published}.items():
        found[name] = difference(*make())
        print(name, ", ".join(f"{key} {value:.5f}" for key, value in found[name].items()), flush=True)
    return found


if __name__ == "__main__":
    main()
