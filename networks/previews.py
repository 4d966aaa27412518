"""Small images of latents while they are sampled: a linear map fitted to an autoencoder, and the tsd decoder.

The map needs no download: it is the least-squares answer to what colour a cell of the latent stands for,
asked of a few images of coloured patches. tsd, the tiny decoder made for DC-AE's published latents,
is used where the person has its file; its layers are read off the file's shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch.nn import functional

IMAGES, CELLS, PATCHES = 8, 8, 2
"""Fitting images, their side in latent cells, and how many coloured rectangles lie on the ground of each."""

RIDGE = 0.1
"""Keeps the map small where the patches say nothing; relative to the latents' variance."""


@dataclass(frozen=True)
class PreviewMap:
    """RGB in [-1, 1] = latent @ ``factors`` [C][3] + ``bias`` [3]."""

    factors: list[list[float]]
    bias: list[float]


def patches(ratio: int) -> torch.Tensor:
    """Images [B, H, W, 3] in [0, 1] of rectangles in every kind of colour; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    side, images = CELLS * ratio, []
    for _ in range(IMAGES):
        colours = torch.rand(PATCHES + 1, 3, generator=generator)
        colours = torch.where(torch.rand(colours.shape, generator=generator) < 0.5, colours.round(), colours)
        image = colours[0].expand(side, side, 3).clone()
        for colour in colours[1:]:
            top, left = (torch.rand(2, generator=generator) * 0.7 * side).long().tolist()
            height, width = ((0.2 + torch.rand(2, generator=generator) * 0.5) * side).long().tolist()
            image[top : top + height, left : left + width] = colour
        images.append(image)
    return torch.stack(images)


def fit_preview(encode: Callable[[torch.Tensor], torch.Tensor], ratio: int) -> PreviewMap:
    """The map of an autoencoder: ``encode`` takes images [B, H, W, 3] in [0, 1] to latents [B, C, h, w]."""
    images = patches(ratio)
    latents = torch.cat([encode(image[None]).float().cpu() for image in images])
    cells = rearrange(latents, "b c h w -> (b h w) c").double()
    colours = reduce(images, "b (h p) (w r) rgb -> (b h w) rgb", "mean", p=ratio, r=ratio).double() * 2 - 1
    mean, target = cells.mean(0), colours.mean(0)
    centred = cells - mean
    gram = centred.T @ centred
    gram += torch.eye(len(gram), dtype=gram.dtype) * RIDGE * gram.diagonal().mean()
    factors = torch.linalg.solve(gram, centred.T @ (colours - target))
    return PreviewMap(factors.tolist(), (target - mean @ factors).tolist())


def fingerprint(autoencoder: torch.nn.Module) -> str:
    """What tells one DC-AE's latents from another's: a hash of the two layers beside the latent."""
    told = hashlib.sha256()
    for layer in (autoencoder.encoder.conv_out, autoencoder.decoder.conv_in):
        told.update(layer.weight.detach().float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


class TinyDecoder(torch.nn.Module):
    """tsd: DC-AE's own latents [B, 32, h, w] to images [B, 3, 8h, 8w] in about [-1, 1].

    A stage runs three convolutions, each over what came before it side by side with their results, mixes
    them and unfolds channels into pixels. ``weights``: the file's tensors by key, float32.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], stages: int):
        super().__init__()
        self.weights, self.stages = dict(weights), stages

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = latent
        for number in range(self.stages):
            for name in "ab":
                x = torch.cat([self._layer(x, f"{number}.conv_{name}"), x], dim=1)
            x = self._layer(self._layer(x, f"{number}.conv_c"), f"{number}.conv_l")
            x = functional.pixel_shuffle(x, self._unfolds(number, x.shape[1]))
        return self._convolved(x, str(self.stages))

    def _unfolds(self, number: int, channels: int) -> int:
        following = f"{number + 1}.conv_a.weight" if number + 1 < self.stages else f"{self.stages}.weight"
        return round((channels / self.weights[following].shape[1]) ** 0.5)

    def _layer(self, x, name: str):
        return functional.leaky_relu(self._convolved(x, name), 0.2)

    def _convolved(self, x, name: str):
        weight, bias = (self.weights[f"{name}.{part}"].to(x.device) for part in ("weight", "bias"))
        return functional.conv2d(x, weight, bias, padding="same")
