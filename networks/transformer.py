"""A loaded SANA transformer: the inputs of one call and its output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..samplers.block_causal import BlockCall
from .families import TransformerSpec


def network_inputs(
    spec: TransformerSpec,
    x,
    time,
    context,
    guidance=None,
    mask=None,
    control=None,
    context_mask=None,
    kept=None,
    block: BlockCall | None = None,
) -> dict:
    """The keyword arguments of diffusers' transformer for one call.

    ``x`` [B, C, H, W] or [B, C, F, H, W] scaled input, ``time`` [B] timestep of the network, ``context``
    [1 or B, L, caption_channels], ``guidance`` [1] or [B], unscaled (only for SANA-Sprint), ``mask``
    broadcastable to ``x``: 0 where a video's latent is kept (only for SANA-Video), ``control``: the
    ControlNet residuals after each block except the first, [B, tokens, width] each, ``context_mask`` [B, L]:
    0 where a context has no token (padded_contexts). ``kept``: a dict, at first empty, for what calls of one run with
    this context and its mask need not compute again (fast_model.py). ``block``: of a long video, whose state the
    call reads.
    """
    _check_shape(spec, x)
    inputs = {
        "hidden_states": x,
        "encoder_hidden_states": context.expand(x.shape[0], -1, -1),
        "timestep": time * spec.time_scale,
        "return_dict": False,
    }
    if control:
        _check_control(spec, control)
        inputs["controlnet_block_samples"] = tuple(control)
    if spec.guidance_scale is not None:
        inputs["guidance"] = guidance.expand(x.shape[0]) * spec.guidance_scale
    if block is None and spec.family.video and mask is not None:
        inputs["timestep"] = token_times(spec, time, _like(mask, x))
    more = {"kept": kept, "encoder_attention_mask": context_mask, "block": block}
    return {**inputs, **{name: value for name, value in more.items() if value is not None}}


def _check_shape(spec: TransformerSpec, x) -> None:
    wanted = "[batch, channels, frames, height, width]" if spec.family.video else "[batch, channels, height, width]"
    if x.ndim != wanted.count(",") + 1:
        raise ValueError(
            f"the latent has the shape {list(x.shape)} and {spec.name} takes {wanted}: make it with "
            f"{spec.family.latent_node}"
        )


def padded_contexts(
    contexts: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None] | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Contexts [n, L, width] of different lengths in one batch, and the mask [B, L] that network_inputs takes.

    ``masks``: those [n, L] of contexts that are padded already. Where all are of one length, there is no mask.
    """
    masks = masks or [None] * len(contexts)
    longest = max(context.shape[1] for context in contexts)
    batch = torch.cat([functional.pad(c, (0, 0, 0, longest - c.shape[1])) for c in contexts])
    if all(mask is None and c.shape[1] == longest for c, mask in zip(contexts, masks)):
        return batch, None
    used = [c.new_ones(c.shape[:2]) if mask is None else mask for c, mask in zip(contexts, masks)]
    return batch, torch.cat([functional.pad(mask, (0, longest - mask.shape[1])) for mask in used]).to(batch.dtype)


def _check_control(spec: TransformerSpec, control) -> None:
    for part in control:
        if part.ndim != 3 or part.shape[-1] != spec.width:
            raise ValueError(
                f"this CONTROL_NET gives residuals of the shape {list(part.shape)}, but this model's tokens have "
                f"{spec.width} channels: load a ControlNet for the same size of SANA with Sana Load ControlNet"
            )


def velocity(spec: TransformerSpec, output):
    """The part [B, C, ...] of a transformer's output that samplers use, without a learned variance after it."""
    return output[0][:, : spec.latent_channels]


def mask_of_times(mask: torch.Tensor) -> torch.Tensor:
    """What of a video's noise mask [B, C, F, H, W] sets the times: [B, 1, F, 1, 1] where each frame has one.

    It asks for the mask's values: once in a run.
    """
    of_frames = mask[:, :1, :, :1, :1]
    return of_frames if bool((mask[:, :1] == of_frames).all()) else mask[:, :1]


def _like(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A mask in the size of ``x``; of whole frames it keeps one row and one column."""
    sides = mask.shape[3:] if mask.shape[3:] == (1, 1) else x.shape[3:]
    return mask.expand(x.shape[0], -1, x.shape[2], *sides)


def token_times(spec: TransformerSpec, time: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The timestep of each token [B, 1, F, h, w], 0 where the latent is kept (SanaImageToVideoPipeline).

    ``mask`` [B, 1 or C, F, H, W]; [B, 1, F, 1, 1] gives each frame's.
    """
    patch = spec.patch if mask.shape[3:] != (1, 1) else (spec.patch[0], 1, 1)
    free = functional.avg_pool3d(mask[:, :1].float(), patch)
    return time.view(-1, 1, 1, 1, 1) * free
