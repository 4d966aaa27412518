"""Long videos with our nodes, called as an executor calls them."""

from __future__ import annotations

import drawing
import torch

BLOCKS = {"block_frames": 2}
SIZE = {"width": 32, "height": 32}


def load():
    """MODEL, CLIP, VAE of the random LongSANA."""
    return drawing.call("SanaLoadPipeline", pipeline="tiny-long")


def prompt(parts, text="a red ring moves right"):
    said = {"clip": parts[1], "prompt": text, "negative_prompt": "", "motion_score": 10, "instruction": "long"}
    return drawing.call("SanaEncodeVideoPrompt", **said)[0]


def story(parts, *texts, fps=16.0, starts=()):
    """A prompt after another: of blocks of two latent frames, one each."""
    before = None
    for number, text in enumerate(texts):
        start = starts[number] if starts else (4 * (2 * number + 1) - 3 if number else 0) / fps
        given = {"conditioning": prompt(parts, text), "start": start, "fps": fps}
        before = drawing.call("SanaPromptSchedule", **given, **({"previous": before} if before else {}))[0]
    return before


def sampled(parts, positive, frames=25, seed=5, **given):
    """The LATENT and the state; ``frames`` of the video, or with a state latent frames times four."""
    count = frames if "state" not in given else frames - 3
    latent = drawing.call("SanaEmptyVideoLatent", vae=parts[2], frames=count, **SIZE)[0]
    asked = {"model": parts[0], "positive": positive, "latent_image": latent, "seed": seed}
    return drawing.call("SanaLongVideoSample", **asked, **{**BLOCKS, **given})


def saved(parts, positive, frames=25, seed=5, **given):
    """What the node that saves returns: ``ui`` and ``result``."""
    asked = {"model": parts[0], "positive": positive, "vae": parts[2], "frames": frames, "seed": seed}
    return drawing.call("SanaLongVideoSave", **asked, **{**SIZE, **BLOCKS, "format": "mkv-ffv1", **given})


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference relative to the largest value."""
    assert one.shape == other.shape, f"{tuple(one.shape)} against {tuple(other.shape)}"
    return float((one - other).abs().max() / other.abs().max())
