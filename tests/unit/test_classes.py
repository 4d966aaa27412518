"""Loading makes no new classes: one for each kind of layer, however often a model is loaded."""

from __future__ import annotations

import drawing
import pytest


def classes(part) -> list[type]:
    """The class of every module of a loaded part, of either host."""
    for path in ("model.diffusion_model", "cond_stage_model", "first_stage_model", "control_model"):
        owner = part
        for name in path.split("."):
            owner = getattr(owner, name, None)
        if owner is not None:
            return [type(module) for module in owner.modules()]
    owner = getattr(part, "module", None) or part.autoencoder.module
    return [type(module) for module in owner.modules()]


@pytest.mark.parametrize("pipeline", ["tiny", "tiny-sana", "tiny-video", "tiny-video-ltx2"])
@pytest.mark.parametrize("dtype", ["default", "fp8_e4m3fn"])
def test_a_pipeline_loaded_twice_has_the_same_classes(host, sana_reference, video_references, pipeline, dtype):
    first, second = (drawing.call("SanaLoadPipeline", pipeline=pipeline, weight_dtype=dtype) for _ in range(2))
    for one, other in zip(first, second):
        assert len(classes(one)) > 10 and classes(one) == classes(other)
        assert type(one) is type(other)


def test_a_controlnet_loaded_twice_has_the_same_classes(host, sana_reference):
    first, second = (drawing.call("SanaLoadControlNet", control_net_name="tiny-control")[0] for _ in range(2))
    assert len(classes(first)) > 10 and classes(first) == classes(second) and type(first) is type(second)
