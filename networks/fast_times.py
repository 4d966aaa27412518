"""The times and the guidance of a call as vectors: diffusers' embeddings, with what a run repeats computed once.

The layers are those of SanaCombinedTimestepGuidanceEmbeddings and AdaLayerNormSingle. Kept from step to step are the
speeds of the sinusoids and the embedding of the guidance.
"""

from __future__ import annotations

import math
from typing import Any

import torch

MAX_PERIOD = 10000
"""The longest period of the sinusoids, as in diffusers."""


def embedded_times(
    embed, timestep: torch.Tensor, guidance: torch.Tensor | None, batch: int, dtype: torch.dtype, kept: dict | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a transformer's ``time_embed`` gives: the vectors of all blocks [N, 6 width], and [N, width].

    ``timestep`` [N]; ``guidance`` [N] or [1]; ``kept``: a run's dict, in which the guidance is the same in every call.
    """
    of_time: Any = embed if guidance is not None else getattr(embed, "emb", None)
    if kept is None or not _is_known(embed, of_time, guidance is not None):
        more = {"guidance": guidance} if guidance is not None else {"batch_size": batch}
        return embed(timestep, hidden_dtype=dtype, **more)
    last = of_time.timestep_embedder(_sinusoids(of_time.time_proj, timestep, kept).to(dtype))
    if guidance is not None:
        if "guidance" not in kept:
            waves = _sinusoids(embed.guidance_condition_proj, guidance, kept)
            kept["guidance"] = embed.guidance_embedder(waves.to(dtype))
        last = last + kept["guidance"]
    return embed.linear(embed.silu(last)), last


def _is_known(embed, of_time, guided: bool) -> bool:
    kind = "SanaCombinedTimestepGuidanceEmbeddings" if guided else "AdaLayerNormSingle"
    if type(embed).__name__ != kind or getattr(of_time, "use_additional_conditions", False):
        return False
    projections = [of_time.time_proj, *([embed.guidance_condition_proj] if guided else [])]
    return all(p.flip_sin_to_cos and p.scale == 1 and p.num_channels % 2 == 0 for p in projections)


def _sinusoids(projection, values: torch.Tensor, kept: dict) -> torch.Tensor:
    """Cosines and sines [N, channels] of ``values`` [N], float32: diffusers' Timesteps."""
    half, shift = projection.num_channels // 2, projection.downscale_freq_shift
    key = "speeds", half, shift
    if key not in kept:
        numbers = torch.arange(half, dtype=torch.float32, device=values.device)
        kept[key] = torch.exp(-math.log(MAX_PERIOD) * numbers / (half - shift))
    angles = values[:, None].float() * kept[key]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
