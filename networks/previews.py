"""Previews of latents during sampling: a linear map fitted to an autoencoder, and the tsd decoder.

The map needs no download: it is a least-squares fit from latent cells to colours, on a few images of
coloured rectangles. tsd, the tiny decoder for DC-AE's published latents, is used if its file is there;
its layers are read from the shapes in the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch.nn import functional

IMAGES, CELLS, PATCHES = 8, 8, 2
"""The number of images for the fit, their side in latent cells, and the number of rectangles on each."""

RIDGE = 0.1
"""Regularisation of the fit, relative to the latents' variance."""

EXPLAINED = 0.5
"""A map of other latents explains nothing of the colours."""


@dataclass(frozen=True)
class PreviewMap:
    """RGB in [-1, 1] = latent @ ``factors`` [C][3] + ``bias`` [3]."""

    factors: list[list[float]]
    bias: list[float]


def patches(ratio: int) -> torch.Tensor:
    """Images [B, H, W, 3] in [0, 1] of rectangles in different colours; the same at each call."""
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


def fit_preview(
    encode: Callable[[torch.Tensor], torch.Tensor], ratio: int, known: PreviewMap | None = None
) -> PreviewMap:
    """The map of an autoencoder: ``encode`` takes images [B, H, W, 3] in [0, 1] to latents [B, C, h, w].

    ``known``: a map for these latents, such as ComfyUI's for published weights; it is returned if it explains
    more than EXPLAINED of the colours' variance, and so belongs to this autoencoder.
    """
    images = patches(ratio)
    latents = torch.cat([encode(image[None]).float().cpu() for image in images])
    cells = rearrange(latents, "b c h w -> (b h w) c").double()
    colours = reduce(images, "b (h p) (w r) rgb -> (b h w) rgb", "mean", p=ratio, r=ratio).double() * 2 - 1
    if known is not None and _explained(known, cells, colours) > EXPLAINED:
        return known
    mean, target = cells.mean(0), colours.mean(0)
    centred = cells - mean
    gram = centred.T @ centred
    gram += torch.eye(len(gram), dtype=gram.dtype) * RIDGE * gram.diagonal().mean()
    factors = torch.linalg.solve(gram, centred.T @ (colours - target))
    return PreviewMap(factors.tolist(), (target - mean @ factors).tolist())


def _explained(known: PreviewMap, cells: torch.Tensor, colours: torch.Tensor) -> float:
    """The part of the colours' variance that a map explains; below 0 if their mean explains more."""
    error = cells @ torch.tensor(known.factors).double() + torch.tensor(known.bias).double() - colours
    return 1 - (error.square().sum() / (colours - colours.mean(0)).square().sum()).item()


def moving_frame(latent: torch.Tensor) -> torch.Tensor:
    """The middle frame [B, C, 1, h, w] of a video latent: image to video keeps the first one fixed."""
    middle = latent.shape[2] // 2
    return latent[:, :, middle : middle + 1]


def fingerprint(autoencoder: torch.nn.Module) -> str:
    """Identifies an autoencoder's latents: a hash of the two layers next to the latent."""
    digest = hashlib.sha256()
    for layer in (autoencoder.encoder.conv_out, autoencoder.decoder.conv_in):
        digest.update(getattr(layer, "conv", layer).weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class TinyDecoder(torch.nn.Module):
    """tsd: DC-AE's latents [B, 32, h, w] to images [B, 3, 8h, 8w] in about [-1, 1].

    A stage runs three convolutions on its input concatenated with the previous results, mixes the results and
    shuffles channels to pixels. ``weights``: the file's tensors by key, float32.
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
