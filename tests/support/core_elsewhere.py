"""What a core node does with a family that docs/core-nodes.md does not say it works with, by the node's name.

The rows "not read", "images only" and "video only", and "works since" in a ComfyUI that is older.
"""

from __future__ import annotations

import drawing
import pytest
import torch
from core_checks import into, mask_of_the_second_quarter
from core_checks_model import check_windows, photo
from core_nodes import call, one, same

ELSEWHERE = {}


elsewhere = into(ELSEWHERE)
"""What happens with a core node where its row is not 'works' or 'unsupported'."""


@elsewhere("FluxGuidance", "FluxDisableGuidance")
def guidance_changes_nothing(rig, name):
    """The conditioning carries another guidance, and the model does not read it."""
    strong = rig.encode("a red ring", guidance_scale=7.0)
    given = {"conditioning": strong} if name == "FluxDisableGuidance" else {"conditioning": rig.red, "guidance": 7.0}
    changed = one(name, **given)
    assert changed[0][1].get("guidance") != given["conditioning"][0][1].get("guidance"), "the node did nothing"
    assert same(rig.draw(positive=changed), rig.base, drawing.ROUNDING)
    assert same(rig.draw(positive=strong), rig.base, drawing.ROUNDING)


# Made for images: dims 2 and 3 of a video are frames and rows


@elsewhere("LatentFlip")
def flip_takes_frames_for_rows(rig):
    assert torch.equal(flipped(rig, "x-axis: vertically"), rig.noise().flip(2))
    assert torch.equal(flipped(rig, "y-axis: horizontally"), rig.noise().flip(3))


def flipped(rig, method: str) -> torch.Tensor:
    return one("LatentFlip", samples=rig.picture(), flip_method=method)["samples"]


@elsewhere("LatentRotate")
def rotate_takes_frames_for_rows(rig):
    turned = one("LatentRotate", samples=rig.picture(), rotation="180 degrees")["samples"]
    assert torch.equal(turned, rig.noise().flip(2, 3))


@elsewhere("LatentComposite")
def composite_takes_frames_for_rows(rig):
    small = {"samples": rig.noise(6)[:, :, :1, :2]}
    placed = one("LatentComposite", samples_to=rig.picture(), samples_from=small, x=16, y=8, feather=0)["samples"]
    expected = rig.noise()
    expected[:, :, 1:2, 2:4] = small["samples"]
    assert torch.equal(placed, expected)


@elsewhere("LatentCrop")
def crop_takes_frames_for_rows(rig):
    big = one("LatentUpscaleBy", samples=rig.picture(), upscale_method="nearest-exact", scale_by=2.0)
    cut = one("LatentCrop", samples=big, width=64, height=64, x=16, y=0)["samples"]
    assert torch.equal(cut, big["samples"][..., 2:10, :])


@elsewhere("LatentOperationSharpen")
def sharpening_knows_no_frames(rig):
    with pytest.raises(NotImplementedError, match="Padding size 4 is not supported for 5D input tensor"):
        one("LatentApplyOperation", samples=rig.picture(), operation=one("LatentOperationSharpen"))


# Made for video: dim 2 of an image is its rows


@elsewhere("TrimVideoLatent")
def trim_takes_rows_for_frames(rig):
    assert torch.equal(one("TrimVideoLatent", samples=rig.picture(), trim_amount=1)["samples"], rig.noise()[:, :, 1:])


@elsewhere("ReplaceVideoLatentFrames")
def replace_takes_rows_for_frames(rig):
    source = {"samples": rig.noise(6)[:, :, :1]}
    out = one("ReplaceVideoLatentFrames", destination=rig.picture(), source=source, index=1)["samples"]
    expected = rig.noise()
    expected[:, :, 1:2] = source["samples"]
    assert torch.equal(out, expected)


@elsewhere("ContextWindowsManual", "WanContextWindowsManual")
def windows_take_rows_for_frames(rig, name):
    check_windows(rig, name, rig.empty())


@elsewhere("EmptyHunyuanLatentVideo")
def an_empty_video_is_refused(rig):
    """By our samplers in words; core's samplers leave it to the model, which cannot unpack its shape."""
    side = rig.pixels
    latent = one("EmptyHunyuanLatentVideo", width=side, height=side, length=5, batch_size=1)
    led = {"model": rig.model, "positive": rig.red, "latent_image": latent, "steps": 2}
    name, led = ("SanaSCMSample", led) if rig.family == "sprint" else ("SanaFlowSample", {**led, "negative": rig.blue})
    with pytest.raises(ValueError, match=rf"the latent has the shape \[1, 16, 2, {side // 8}, {side // 8}\] and SANA"):
        drawing.call(name, **led)
    with pytest.raises(ValueError, match="too many values to unpack|the latent has the shape"):
        rig.draw(latent=latent)


# What older ComfyUIs do


@elsewhere("VAEEncodeForInpaint")
def inpainting_did_not_know_three_ratios(rig):
    """Before 0.33 it divides by a video VAE's ratios as if they were one."""
    given = {"pixels": photo(rig), "vae": rig.vae, "mask": mask_of_the_second_quarter(rig)}
    with pytest.raises(TypeError, match="unsupported operand type.* 'int' and 'tuple'"):
        call("VAEEncodeForInpaint", grow_mask_by=0, **given)
