"""Video nodes called as an executor calls them: shapes, conversions, choices, and what is said of bad input."""

from __future__ import annotations

import drawing
import filming
import graphs
import pytest
import torch
from PIL import Image
from reading import decoded, tags_in
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.host.embedded import graph as executor
from sana_nodes.networks.latent_spaces import WAN, neutral_latent


@pytest.fixture
def parts(host, video_references):
    return drawing.call("SanaLoadPipeline", pipeline="tiny-video")


@pytest.fixture
def large(host, video_references):
    return drawing.call("SanaLoadPipeline", pipeline="tiny-video-ltx2")


@pytest.mark.parametrize("frames,held", [(1, 1), (4, 1), (5, 2), (8, 2), (81, 21)])
def test_frames_are_rounded_down(parts, frames, held):
    assert filming.latent(parts[2], frames=frames)["samples"].shape == (1, 16, held, 8, 8)


def test_the_vae_decides_the_shape(large):
    assert filming.latent(large[2], frames=17, width=96, batch=3)["samples"].shape == (3, 128, 3, 2, 3)


def test_a_latent_from_a_picture(parts):
    latent = filming.latent(parts[2], torch.rand(2, 64, 64, 3), frames=9, batch=2)
    samples, mask = latent["samples"], latent["noise_mask"]
    assert samples.shape == (2, 16, 3, 8, 8) and mask.shape == (2, 1, 3, 8, 8)
    assert mask[:, :, 0].max() == 0 and mask[:, :, 1:].min() == 1
    neutral = neutral_latent(WAN).view(1, 16, 1, 1, 1).to(samples)
    assert torch.equal(samples[:, :, 1:], neutral.expand(2, -1, 2, 8, 8))
    assert (samples[:, :, 0] - neutral[:, :, 0]).abs().max() > 0.01


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_modes_are_converted(parts, channels):
    image = torch.rand(1, 64, 64, channels)
    plain = image.expand(-1, -1, -1, 3) if channels == 1 else image[..., :3]
    mine, same = (filming.latent(parts[2], picture)["samples"] for picture in (image, plain))
    assert drawing.difference(mine, same) < drawing.ROUNDING
    with pytest.raises(ValueError, match="give images of 1, 3 or 4 channels"):
        filming.latent(parts[2], torch.rand(1, 64, 64, 2))


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"frames": 0}, "frames is 0; give 1 or more"),
        ({"frames": -5}, "frames is -5; give 1 or more"),
        ({"batch": 0}, "batch_size is 0"),
        ({"width": 72}, "the nearest are 64 and 80"),
        ({"height": 0}, "height is 0"),
        ({"frames": 10**6}, "at most 100000"),
    ],
    ids=str,
)
@pytest.mark.parametrize("image", [None, torch.rand(1, 64, 64, 3)], ids=["text", "picture"])
def test_sizes_that_cannot_be(parts, image, settings, said):
    with pytest.raises(ValueError, match=said):
        filming.latent(parts[2], image, **settings)


def test_a_size_that_the_larger_vae_cannot_have(large):
    with pytest.raises(ValueError, match="not a multiple of 32 .* the nearest are 64 and 96"):
        filming.latent(large[2], width=80)
    with pytest.raises(ValueError, match="needs sides of at least 64"):
        filming.latent(large[2], height=32)


@pytest.mark.parametrize("name", ["SanaEmptyVideoLatent", "SanaImageToVideoLatent"])
def test_bad_sizes_are_said_before_anything_runs(name):
    check = NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS
    assert check(width=832, height=480, frames=81) is True and check() is True
    assert "frames is 0" in check(width=832, height=480, frames=0)
    assert "multiple of 16" in check(width=833, height=480, frames=1)


def test_what_does_not_belong_together(host, parts, large, reference):
    sprint = drawing.call("SanaLoadPipeline", pipeline="tiny")
    with pytest.raises(ValueError, match="DC-AE, SANA's autoencoder for images"):
        filming.latent(sprint[2])
    with pytest.raises(ValueError, match="SANA-Sprint, which flow matching cannot sample: use Sana SCM Sample"):
        filming.sampled((sprint[0], *parts[1:]), filming.latent(parts[2]))
    with pytest.raises(ValueError, match="SANA-Video takes .batch, 16, frames, height, width.*the Wan 2.1 VAE"):
        filming.sampled(parts, filming.latent(large[2]))
    with pytest.raises(ValueError, match="SANA-Video takes .batch, 128, frames.*the LTX-2 video VAE"):
        filming.sampled(large, filming.latent(parts[2]))
    with pytest.raises(ValueError, match="decode it with the LTX-2 video VAE"):
        parts[2].decode(filming.latent(large[2])["samples"])
    with pytest.raises(ValueError, match="decode it with DC-AE"):
        parts[2].decode(torch.zeros(1, 32, 8, 8))
    picture = drawing.call("SanaEmptyLatent", width=64, height=64)[0]
    with pytest.raises(ValueError, match="make it with Sana Empty Video Latent"):
        filming.sampled(parts, picture)
    with pytest.raises(ValueError, match="is SANA-Video, not SANA-Sprint: sample it with Sana Flow Sample"):
        drawing.call("SanaSCMSample", model=parts[0], positive=[], latent_image=picture)
    with pytest.raises(ValueError, match="needs a multiple of its patch size 2"):
        filming.sampled(parts, {"samples": torch.zeros(1, 16, 1, 7, 8)})
    with pytest.raises(ValueError, match="not a video's: use VAE Decode"):
        drawing.call("SanaDecodeSaveVideo", samples=picture, vae=parts[2])


def test_sigmas_of_sprint_are_refused(parts):
    with pytest.raises(ValueError, match="from 1 down to 0"):
        filming.sampled(parts, filming.latent(parts[2]), sigmas=torch.tensor([1.5708, 0.5, 0.0]))


def test_schedules_are_checked_before_anything_runs():
    check = NODE_CLASS_MAPPINGS["SanaFlowSample"].VALIDATE_INPUTS
    good = {"steps": 50, "cfg": 6.0, "shift": 0.0, "solver": "euler", "denoise": 1.0}
    assert check(**good) is True and check() is True
    for change, said in (
        ({"steps": 0}, "steps"),
        ({"cfg": 0.9}, "cfg is 0.9"),
        ({"shift": -1.0}, "shift"),
        ({"solver": "x"}, "solver"),
    ):
        assert said in check(**{**good, **change})


def test_denoise_0_and_sigmas_without_a_step_give_the_latent_back(parts):
    latent = filming.latent(parts[2])
    assert filming.sampled(parts, latent, denoise=0.0) is latent
    assert filming.sampled(parts, latent, sigmas=torch.zeros(1)) is latent


def test_denoise_keeps_part_of_a_video(parts):
    frames = torch.rand(5, 64, 64, 3)
    latent = {"samples": parts[2].encode(frames)}
    near, far = (
        (filming.sampled(parts, latent, steps=10, denoise=d)["samples"] - latent["samples"]).abs().mean()
        for d in (0.1, 0.9)
    )
    assert near < 0.7 * far


def test_noise_that_is_not_added_is_still_drawn(parts):
    """A run split in two, its second part without noise, is the whole run."""
    sigmas = drawing.call("SanaFlowSigmas", steps=4, solver="euler", model=parts[0])[0]
    whole = filming.sampled(parts, filming.latent(parts[2]), sigmas=sigmas, solver="euler", seed=5)
    first = filming.sampled(parts, filming.latent(parts[2]), sigmas=sigmas[:3], solver="euler", seed=5)
    rest = filming.sampled(parts, first, sigmas=sigmas[2:], solver="euler", seed=5, add_noise="disable")
    assert (rest["samples"] - whole["samples"]).abs().max() < 1e-4


def test_the_models_own_shift(parts):
    own = drawing.call("SanaFlowSigmas", model=parts[0])[0]
    assert torch.allclose(own, drawing.call("SanaFlowSigmas", shift=8.0)[0], atol=1e-6)
    assert torch.allclose(drawing.call("SanaFlowSigmas")[0], drawing.call("SanaFlowSigmas", shift=3.0)[0], atol=1e-6)


@pytest.mark.parametrize(
    "given,expected",
    [
        ({}, range(10)),
        ({"start": -1}, [9]),
        ({"start": 2, "count": 3}, [2, 3, 4]),
        ({"start": -4, "stride": 2}, [6, 8]),
        ({"stride": 4, "count": 2}, [0, 4]),
        ({"count": 99}, range(10)),
    ],
    ids=str,
)
def test_select_frames(given, expected):
    images = torch.arange(10.0).view(10, 1, 1, 1)
    assert drawing.call("SanaSelectFrames", images=images, **given)[0].flatten().tolist() == list(expected)


@pytest.mark.parametrize(
    "given,said", [({"start": 10}, "give -10 to 9"), ({"start": -11}, "start is -11"), ({"stride": 0}, "stride is 0")]
)
def test_frames_that_are_not_there(given, said):
    with pytest.raises(ValueError, match=said):
        drawing.call("SanaSelectFrames", images=torch.zeros(10, 1, 1, 3), **given)


GRAPH = {"6": {"class_type": "SanaSaveVideo", "inputs": {}}}


def test_saving_a_video(host):
    images = torch.rand(5, 32, 32, 3)
    saved = drawing.call("SanaSaveVideo", images=images, format="mkv-ffv1", filename_prefix="nodes/clip", prompt=GRAPH)
    same, path, _ = saved["result"]
    assert same is images and saved["ui"]["files"]
    assert torch.equal(decoded(path), images.mul(255).round().div(255))
    assert tags_in(host.save_target("nodes/clip", 1, 1).folder / path) == {"prompt": GRAPH}
    again = drawing.call("SanaSaveVideo", images=images, filename_prefix="nodes/clip")
    assert again["result"][1] != path and again["ui"]["images"]


def test_decoding_into_files(host, parts):
    latent = filming.sampled(parts, filming.latent(parts[2], frames=9, batch=2))
    frames = parts[2].decode(latent["samples"]).mul(255).round().div(255)
    given = {"samples": latent, "vae": parts[2], "format": "mkv-ffv1", "filename_prefix": "nodes/pieces"}
    saved = drawing.call("SanaDecodeSaveVideo", **given)
    assert len(saved["ui"]["files"]) == 2
    assert (decoded(saved["result"][0]) - frames[1]).abs().max() < 1e-5


def test_saving_frames(host):
    images = torch.rand(3, 8, 8, 3)
    saved = drawing.call("SanaSaveFrames", images=images, filename_prefix="nodes/frames/f", prompt=GRAPH)
    same, folder = saved["result"]
    names = [f"f_{i:05}_.png" for i in (1, 2, 3)]
    assert same is images and len(saved["ui"]["images"]) == 3
    with Image.open(f"{folder}/{names[2]}") as picture:
        assert picture.size == (8, 8) and "prompt" in picture.text
    more = drawing.call("SanaSaveFrames", images=images[:1], format="jpg", filename_prefix="nodes/frames/f")
    assert len(more["ui"]["images"]) == 1
    with pytest.raises(ValueError, match="format is 'bmp'"):
        drawing.call("SanaSaveFrames", images=images, format="bmp", filename_prefix="nodes/frames/f")


@pytest.mark.parametrize("name", ["SanaSaveVideo", "SanaDecodeSaveVideo"])
def test_files_that_cannot_be_are_refused_before_anything_runs(host, name):
    """The prefix by the node; number and format by the host, as the node declares them (over HTTP in comfyui/)."""
    check = NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS
    assert check(filename_prefix="video/x") is True
    assert "leads out" in check(filename_prefix="../x")
    graph = graphs.video()
    if name == "SanaDecodeSaveVideo":
        graph["6"]["inputs"].pop("images")
        graph["6"] = graphs.node(name, samples=["4", 0], vae=["1", 2], **graph["6"]["inputs"])
    for change, message in (
        ({"fps": 0.0}, "fps is 0.0"),
        ({"format": "avi"}, "format is 'avi'"),
        ({"format": None}, "format is None"),
        ({"filename_prefix": "../x"}, "leads out"),
    ):
        graph["6"]["inputs"].update({"fps": 16.0, "format": "gif", "filename_prefix": "video/x", **change})
        with pytest.raises(executor.BadWorkflow, match=message):
            executor.check(graph, NODE_CLASS_MAPPINGS)


def test_an_output_folder_that_cannot_be_written_is_said_before_anything_runs(host, monkeypatch, home):
    blocked = home / "output" / "blocked"
    if not blocked.exists():
        blocked.write_text("a file where a folder should be")
    message = NODE_CLASS_MAPPINGS["SanaSaveVideo"].VALIDATE_INPUTS(filename_prefix="blocked/clip")
    assert message is not True and "blocked" in message
