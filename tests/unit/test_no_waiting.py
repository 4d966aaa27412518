"""No step of a run asks a tensor for its value: on a card the program would wait there for all that was launched."""

from __future__ import annotations

import drawing
import filming
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero}
"""``.item()``, ``.tolist()`` and ``bool()`` of a tensor, and indexing by a mask."""


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._overloadpacket in WAITS
        return func(*args, **(kwargs or {}))


def waits(run, steps: int) -> int:
    with Waits() as counted:
        run(steps)
    return counted.count


def sprint(parts):
    model, clip, _ = parts
    positive = drawing.call("SanaEncodePrompt", clip=clip, text="a red ring")[0]
    latent = drawing.call("SanaEmptyLatent", width=64, height=64)[0]
    given = {"model": model, "positive": positive, "latent_image": latent, "seed": 0}
    return lambda steps: drawing.call("SanaSCMSample", **given, steps=steps)


def flow(solver):
    def make(parts):
        start = filming.latent(parts[2], torch.rand(1, 64, 64, 3))
        return lambda steps: filming.sampled(parts, start, steps=steps, solver=solver)

    return make


@pytest.mark.parametrize(
    ("pipeline", "make"),
    [("tiny", sprint), ("tiny-video", flow("euler")), ("tiny-video", flow("dpm_solver++"))],
    ids=["sprint", "image to video by Euler", "image to video by DPM-Solver++"],
)
def test_steps_wait_for_nothing(host, video_references, pipeline, make):
    """Twice the steps ask for no more values; what is asked at the beginning of a run does not count."""
    run = make(drawing.call("SanaLoadPipeline", pipeline=pipeline))
    run(2)
    few, many = waits(run, 4), waits(run, 8)
    assert many == few, f"{many} values asked for in 8 steps, {few} in 4"
