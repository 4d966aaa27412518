"""DC-AE in tiles, with the result of the untiled image: the memory of a tile, and no seams.

A convolution sees a few cells around each cell, so a tile is computed with that many more cells on each
side (its halo), which are cropped afterwards. Linear attention sees the whole image, but only through one
small matrix per head: the sum of value times key over all positions (EfficientViT, arXiv 2205.14756). A
first pass sums it over all tiles, a second pass applies it in each of them. The layers are diffusers' own
(autoencoder_dc.py). AutoencoderDC's own tiling differs: its tiles are independent and blended, so the sums,
and with them colours and edges, differ between tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from einops import reduce

from .fast_autoencoder import activated, add_normed, apply_attention, attention_maps, attention_sums, channels_last


@dataclass(frozen=True)
class Tiling:
    """Settings of a tiled pass: tiles of ``side`` pixels, computed on ``device`` in ``dtype``.

    ``report(done, total)`` is called after each tile; it may raise to stop. The result is on ``output``.
    """

    side: int
    device: torch.device
    dtype: torch.dtype
    report: Callable[[int, int], None] = lambda done, total: None
    output: torch.device | str = "cpu"

    @torch.no_grad()
    def decode(self, module, latents: torch.Tensor) -> torch.Tensor:
        """AutoencoderDC.decode of [B, C, h, w]: [B, 3, H, W] in float32."""
        return self._through(_decoder_stages(module.decoder), latents, module.spatial_compression_ratio)

    @torch.no_grad()
    def encode(self, module, pixels: torch.Tensor) -> torch.Tensor:
        """AutoencoderDC.encode of [B, 3, H, W] in [-1, 1]: [B, C, h, w] in float32."""
        return self._through(_encoder_stages(module.encoder), pixels, 1)

    def _through(self, stages: list[_Stage], given: torch.Tensor, cell: int) -> torch.Tensor:
        """``cell``: the width and height of a cell of ``given`` in pixels."""
        plan, total, shape = [], 0, given.shape[-2:]
        for stage in stages:
            cores = _cores(shape, stage.down, max(1, self.side // (cell * stage.down)))
            plan.append((stage, cores))
            total += len(given) * stage.passes * len(cores)
            shape = [side // stage.down * stage.up for side in shape]
            cell = cell * stage.down // stage.up
        done, finished = 0, []
        for x in given.split(1):
            for index, (stage, cores) in enumerate(plan):
                last = index == len(plan) - 1
                whole = None
                for rows, columns, part in stage.run(x, cores, self._to_device):
                    if part is not None:
                        whole = self._canvas(part, x.shape, stage, last) if whole is None else whole
                        whole[..., rows, columns] = part
                    done += 1
                    self.report(done, total)
                x = whole
            finished.append(x)
        return torch.cat(finished) if len(finished) > 1 else finished[0]

    def _to_device(self, tile: torch.Tensor) -> torch.Tensor:
        return tile.to(self.device, self.dtype)

    def _canvas(self, part, shape, stage, last: bool) -> torch.Tensor:
        """An empty map for a stage's tiles; maps between stages are on the device."""
        size = *part.shape[:2], *(side // stage.down * stage.up for side in shape[-2:])
        if last:
            return torch.empty(size, device=self.output)
        return torch.empty(size, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)


Core = tuple[slice, slice]


def _cores(shape, down: int, size: int) -> list[Core]:
    """Tiles of at most ``size`` units that cover a map, in units of ``down`` cells."""

    def along(length: int) -> list[slice]:
        count = -(-length // size)
        edges = [length * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:])]

    return [(rows, columns) for rows in along(shape[-2] // down) for columns in along(shape[-1] // down)]


def _tile(x: torch.Tensor, core: Core, halo: int, down: int = 1) -> torch.Tensor:
    """A tile of a map, with its halo inside the map."""
    rows, columns = (slice(max(0, s.start - halo) * down, (s.stop + halo) * down) for s in core)
    return x[..., rows, columns]


def _inside(core: Core, halo: int, up: int = 1) -> Core:
    """The position of a tile's own cells in its result, without the halo."""
    rows, columns = (slice(min(halo, s.start) * up, (min(halo, s.start) + s.stop - s.start) * up) for s in core)
    return rows, columns


@dataclass(frozen=True)
class _Layer:
    """A layer with a local receptive field: a halo of ``n`` output cells needs ``reach(n)`` input cells."""

    call: Callable[[torch.Tensor], torch.Tensor]
    reach: Callable[[int], int]
    down: int = 1
    up: int = 1


class _Local:
    """A sequence of layers with local receptive fields."""

    passes = 1

    def __init__(self, layers: list[_Layer]):
        self.layers, self.down, self.up, cells = layers, 1, 1, 0
        for layer in layers:
            self.down, self.up = self.down * layer.down, self.up * layer.up
        for layer in reversed(layers):
            cells = layer.reach(cells)
        self.halo = -(-cells // self.down)
        """In units of ``down`` cells, so that every tile is aligned with the strided convolutions."""

    def run(self, x: torch.Tensor, cores: list[Core], to_device: Callable) -> Iterator[tuple]:
        for core in cores:
            part = channels_last(to_device(_tile(x, core, self.halo, self.down)))
            for layer in self.layers:
                part = channels_last(layer.call(part))
            rows, columns = (slice(s.start * self.up, s.stop * self.up) for s in core)
            yield rows, columns, part[(..., *_inside(core, self.halo, self.up))]


class _Attention:
    """An EfficientViTBlock: one pass over the image for the sums of its attention, one to apply them."""

    passes, down, up = 2, 1, 1

    def __init__(self, block):
        self.block = block
        kernels = [scale.proj_in.kernel_size[0] for scale in block.attn.to_qkv_multiscale]
        self.halo = max(kernels, default=1) // 2 + 1
        """For the multi-scale convolutions and the feed-forward's depth-wise convolution."""

    def run(self, x: torch.Tensor, cores: list[Core], to_device: Callable) -> Iterator[tuple]:
        attn = self.block.attn
        sums: list[torch.Tensor] = []
        for core in cores:
            maps = attention_maps(attn, channels_last(to_device(_tile(x, core, self.halo))))
            own = attention_sums(attn, maps, *_inside(core, self.halo))
            sums = [a + b for a, b in zip(sums, own)] if sums else own
            del maps
            yield *core, None
        for core in cores:
            part = channels_last(to_device(_tile(x, core, self.halo)))
            part = self.block.conv_out(apply_attention(attn, part, attention_maps(attn, part), sums))
            yield *core, part[(..., *_inside(core, self.halo))]


_Stage = _Local | _Attention


def _stages(layers: list) -> list[_Stage]:
    """Each attention block as one stage, and the layers between attention blocks as one stage."""
    stages: list[_Stage] = []
    for local, group in groupby(layers, lambda layer: isinstance(layer, _Layer)):
        blocks = list(group)
        stages += [_Local(blocks)] if local else map(_Attention, blocks)
    return stages


def _layer(layer):
    """One of diffusers' layers as a _Layer; an attention block is returned unchanged."""
    if hasattr(layer, "attn"):
        return layer
    if hasattr(layer, "interpolate"):  # its convolution is after the interpolation, or before the shuffle
        return _Layer(layer, (lambda n: n // 2 + 1) if layer.interpolate else (lambda n: (n + 1) // 2 + 1), up=2)
    if hasattr(layer, "downsample"):
        return _Layer(layer, lambda n: 2 * n + 1, down=2)
    if hasattr(layer, "conv1"):
        return _Layer(layer, lambda n: n + 2)
    return _Layer(layer, lambda n: n + layer.kernel_size[0] // 2)


def halos(module) -> tuple[int, int]:
    """The halos in pixels of an encoder's first and a decoder's last layers, up to the nearest attention block."""
    first, decoder = _encoder_stages(module.encoder)[0], _decoder_stages(module.decoder)
    cell = module.spatial_compression_ratio
    for stage in decoder[:-1]:
        cell = cell * stage.down // stage.up
    return first.halo * first.down, decoder[-1].halo * decoder[-1].down * cell


def _decoder_stages(decoder) -> list[_Stage]:
    def first(x):
        h = decoder.conv_in(x)
        return h + x.repeat_interleave(decoder.in_shortcut_repeats, dim=1) if decoder.in_shortcut else h

    def last(x):
        return out.call(activated(decoder.conv_act, add_normed(decoder.norm_out, x, torch.empty_like(x))))

    out = _layer(decoder.conv_out)
    blocks = [_layer(layer) for stage in reversed(decoder.up_blocks) for layer in stage]
    return _stages([_Layer(first, lambda n: n + 1), *blocks, _Layer(last, out.reach, out.down, out.up)])


def _encoder_stages(encoder) -> list[_Stage]:
    def last(x):
        h = encoder.conv_out(x)
        if not encoder.out_shortcut:
            return h
        return h + reduce(x, "b (c group) h w -> b c h w", "mean", group=encoder.out_shortcut_average_group_size)

    blocks = [_layer(layer) for stage in encoder.down_blocks for layer in stage]
    return _stages([_layer(encoder.conv_in), *blocks, _Layer(last, lambda n: n + 1)])
