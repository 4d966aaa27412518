"""Random inputs for one call of a small transformer."""

from __future__ import annotations

import torch


def image_inputs(network, batch=1, sides=(6, 10), lengths=(9,), masked=False, seed=0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    config = network.config

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    given = {
        "hidden_states": noise(batch, config.in_channels, *sides),
        "encoder_hidden_states": noise(batch, max(lengths), config.caption_channels),
        "timestep": torch.linspace(0.3, 0.9, batch),
        "return_dict": False,
    }
    if config.guidance_embeds:
        given["guidance"] = torch.linspace(0.45, 0.6, batch)
    if masked:
        given["encoder_attention_mask"] = torch.stack([torch.arange(max(lengths)) < n for n in lengths]).float()
    return given


def video_inputs(network, batch=1, cells=(3, 6, 10), lengths=(9,), masked=False, timed=False, seed=0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    config, patch = network.config, network.config.patch_size
    tokens = [cell // side for cell, side in zip(cells, patch)]
    given = {
        "hidden_states": torch.randn(batch, config.in_channels, *cells, generator=generator),
        "encoder_hidden_states": torch.randn(batch, max(lengths), config.caption_channels, generator=generator),
        "timestep": torch.linspace(300, 900, batch),
        "return_dict": False,
    }
    if timed:
        given["timestep"] = torch.rand(batch, 1, *tokens, generator=generator).mul(900)
        given["timestep"][:, :, 0] = 0
    if config.guidance_embeds:
        given["guidance"] = torch.linspace(0.45, 0.6, batch)
    if masked:
        given["encoder_attention_mask"] = torch.stack([torch.arange(max(lengths)) < n for n in lengths]).float()
    return given
