"""Quantised files in ComfyUI give the image of the floating weights that they stand for, whatever part they hold."""

from __future__ import annotations

import controlling
import drawing
import in_process
import pytest
import quantising
import tiny
import torch
from controlling import PROMPT
from safetensors.torch import save_file

FORMS = ["scaled fp8", "mixed", "float8_e4m3fn", "int8_tensorwise_rows", "nvfp4"]
LOADERS = {
    "transformer": ("diffusion_models", "SanaLoadTransformer", "model_name", tiny.image_transformer),
    "text encoder": ("text_encoders", "SanaLoadTextEncoder", "encoder_name", tiny.text_encoder),
    "autoencoder": ("vae", "SanaLoadVAE", "vae_name", tiny.autoencoder),
    "ControlNet": ("controlnet", "SanaLoadControlNet", "control_net_name", tiny.controlnet),
}
"""A part's folder in models, the node that loads it, the node's input, and what makes it."""


@pytest.fixture(scope="module")
def host(home, sana_reference):
    from sana_nodes import host as hosts

    in_process.start_comfyui(home)
    yield hosts.use("comfyui")
    hosts._current = None


@pytest.fixture(scope="module")
def parts(host):
    return drawing.call("SanaLoadPipeline", pipeline="tiny-sana")


@pytest.fixture
def image_with(host, parts, home):
    """An image with one part from a folder of its own, that holds ``tensors``."""

    def image(part: str, tensors: dict, **given) -> torch.Tensor:
        kind, node, name, make = LOADERS[part]
        folder = home / "models" / kind / "quantised"
        make().save_pretrained(folder)
        (file,) = folder.glob("*.safetensors")
        save_file(tensors, file)
        loaded = drawing.call(node, **{name: "quantised"}, **given)[0]
        file.unlink()
        used = list(parts)
        led = None
        if part == "ControlNet":
            led = controlled(host, parts[2], loaded)
        else:
            used[["transformer", "text encoder", "autoencoder"].index(part)] = loaded
        return drawing.flow(used, PROMPT, "a green square", steps=2, led=led)

    return image


def controlled(host, vae, net):
    given = {"control_net": net, "image": controlling.image(), "vae": vae, "strength": 1.0}
    given |= {"start_percent": 0.0, "end_percent": 1.0}
    return lambda positive, negative: drawing.core(
        "ControlNetApplyAdvanced", host, positive=positive, negative=negative, **given
    )[:2]


def weights_of(part: str) -> dict:
    return {key: value.contiguous() for key, value in LOADERS[part][3]().state_dict().items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", LOADERS)
def test_the_image_is_that_of_the_weights_it_stands_for(image_with, part, form):
    file, true = quantising.quantised(weights_of(part), form)
    assert len(file) > len(true) and {v.dtype for v in true.values()} == {torch.float32}
    mine, expected = image_with(part, file), image_with(part, true)
    assert drawing.difference(mine, expected) < 1e-5
    assert drawing.difference(mine, image_with(part, weights_of(part))) > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("form", ["scaled fp8", "mixed"])
@pytest.mark.parametrize("part", LOADERS)
def test_in_bfloat16_too(image_with, part, form):
    """One rounding of the true value, as of a file that holds it."""
    file, true = quantising.quantised(weights_of(part), form)
    mine, expected = (image_with(part, tensors, weight_dtype="bf16") for tensors in (file, true))
    assert drawing.difference(mine, expected) < 1e-5


@pytest.mark.parametrize("dtype", ["fp16", "fp8_e4m3fn", "fp8_e5m2", "fp32"])
@pytest.mark.parametrize("part", ["transformer", "ControlNet"])
def test_stored_as_the_person_asks(image_with, part, dtype):
    file, true = quantising.quantised(weights_of(part), "mixed")
    mine, expected = (image_with(part, tensors, weight_dtype=dtype) for tensors in (file, true))
    assert drawing.difference(mine, expected) < 1e-5
