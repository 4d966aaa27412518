"""The saving nodes in a real ComfyUI server, over HTTP: sound, two servers at once, alpha, colour, wrong prefixes."""

from __future__ import annotations

import json
import os
import wave

import av
import numpy as np
import pytest
import torch
from clips import SOUNDING, heard
from graphs import node
from PIL import Image
from reading import decoded
from server import Server

pytestmark = pytest.mark.comfyui
SAVES = 12


@pytest.fixture(scope="module")
def server(home):
    with Server(home) as running:
        yield running


def saving(node_class="SanaSaveVideo", count=6, color=0x4080C0, **given) -> dict:
    """A graph that saves ``count`` frames of one colour."""
    if node_class == "SanaSaveVideo":
        given = {"fps": 16.0, "quality": 80, "format": "mp4-h264", "filename_prefix": "savers/clip", **given}
    return {
        "1": node("EmptyImage", width=32, height=32, batch_size=count, color=color),
        "2": node(node_class, images=["1", 0], **given),
    }


def paths(server, entry) -> list:
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:3000]
    shown = [item for out in entry["outputs"].values() for key in ("images", "files") for item in out.get(key, [])]
    return [server.home / "output" / item["subfolder"] / item["filename"] for item in shown]


def saved(server, graph) -> list:
    """The paths of what a run saved."""
    return paths(server, server.run(graph))


def with_sound(graph: dict, folder, seconds: float) -> dict:
    """The graph with a tone of a wav file as its audio; of no seconds with core EmptyAudio's."""
    if not seconds:
        graph["3"] = node("EmptyAudio", duration=0.0, sample_rate=44100, channels=2)
    else:
        time = np.arange(round(seconds * 44100)) / 44100
        with wave.open(str(folder / f"tone-{seconds}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(44100)
            file.writeframes((np.sin(time * 2 * np.pi * 440) * 16000).astype("<i2").tobytes())
        graph["3"] = node("LoadAudio", audio=f"tone-{seconds}.wav")
    graph["2"]["inputs"]["audio"] = ["3", 0]
    return graph


@pytest.mark.parametrize("format", SOUNDING)
@pytest.mark.parametrize("seconds", [0, 1.0, 2.6, 5.0])
def test_every_frame_stays_and_sound_is_as_long_as_the_video(server, format, seconds):
    graph = with_sound(saving(count=48, format=format), server.home / "input", seconds)
    (path,) = saved(server, graph)
    assert len(decoded(path)) == 48
    if not seconds:
        with av.open(str(path)) as file:
            assert not file.streams.audio
        return
    samples, rate = heard(path)
    assert abs(len(samples) / rate - 3.0) < 0.06
    assert samples[: rate // 2].abs().max() > 0.4
    assert seconds >= 3.0 or samples[round((seconds + 0.1) * rate) :].abs().max() < 1e-2


def test_sound_for_a_gif_is_refused(server):
    graph = with_sound(saving(format="gif"), server.home / "input", 1.0)
    assert "gif has no sound" in server.refusal(graph)


KINDS = {
    "mkv": ("SanaSaveVideo", {"format": "mkv-ffv1"}),
    "mp4": ("SanaSaveVideo", {"format": "mp4-h264"}),
    "webm": ("SanaSaveVideo", {"format": "webm-vp9"}),
    "gif": ("SanaSaveVideo", {"format": "gif"}),
    "webp": ("SanaSaveVideo", {"format": "webp"}),
    "frames": ("SanaSaveFrames", {"format": "png"}),
}


@pytest.fixture(scope="module")
def two_servers(server, home):
    with Server(home) as second:
        yield server, second


@pytest.mark.parametrize("kind", KINDS)
def test_two_servers_with_one_prefix(two_servers, kind):
    """Every file is whole, holds its own colour, and none is replaced; a batch's numbers follow one another."""
    name, given = KINDS[kind]
    queued = []
    for i in range(SAVES):
        for which, running in enumerate(two_servers):
            color = (40 + 10 * i) << (16 * which)
            queued.append(
                (running, running.queue(saving(name, 3, color, filename_prefix=f"two/{kind}", **given)), color)
            )
    seen = []
    for running, prompt_id, color in queued:
        files = paths(running, running.wait(prompt_id))
        wanted = torch.tensor([color >> 16, 0, color & 255]) / 255
        for path in files:
            assert (mean_colour(path) - wanted).abs().max() < 0.02, path
        numbers = [int(path.name.split("_")[-2]) for path in files]
        assert numbers == list(range(numbers[0], numbers[0] + len(files)))
        seen += files
    assert len(seen) == len(set(seen)) == 2 * SAVES * (3 if kind == "frames" else 1)
    assert {file for file in (two_servers[0].home / "output" / "two").glob(f"*{kind}_*")} == set(seen)


def mean_colour(path) -> torch.Tensor:
    if path.suffix in (".png", ".webp"):
        with Image.open(path) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).flatten(0, 1).mean(0) / 255
    found = decoded(path)
    assert len(found) == 3
    return found.flatten(0, 2).mean(0)


def with_alpha(graph: dict) -> dict:
    """The graph with frames of four channels, alpha 0.25, from core JoinImageWithAlpha."""
    graph["4"] = node("SolidMask", value=0.75, width=32, height=32)
    graph["5"] = node("JoinImageWithAlpha", image=["1", 0], alpha=["4", 0])
    graph["2"]["inputs"]["images"] = ["5", 0]
    return graph


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_images_keep_alpha(server, format):
    graph = saving("SanaSaveFrames", 1, format=format, filename_prefix="savers/alpha")
    (path,) = saved(server, with_alpha(graph))
    core = saving("SaveImage", 1, filename_prefix="savers/core")
    (theirs,) = saved(server, with_alpha(core))
    with Image.open(path) as ours, Image.open(theirs) as cores:
        assert cores.mode == "RGBA" and ours.mode == ("RGB" if format == "jpg" else "RGBA")
        found, wanted = np.asarray(ours, int), np.asarray(cores, int)
    assert np.abs(found - wanted[..., : found.shape[-1]]).max() <= (1 if format == "png" else 6)
    assert ("jpg holds no alpha" in server.log.read_text()) or format != "jpg"


def test_a_video_leaves_alpha_out_and_says_so_once(server):
    before = server.log.read_text().count("mkv-ffv1 holds no alpha")
    (path,) = saved(server, with_alpha(saving(count=1, format="mkv-ffv1")))
    (plain,) = saved(server, saving(count=1, format="mkv-ffv1"))
    assert torch.equal(decoded(path), decoded(plain))
    assert server.log.read_text().count("mkv-ffv1 holds no alpha") == before + 1


@pytest.mark.parametrize("format", ["mp4-h264", "webm-vp9"])
def test_colour_is_bt709(server, format):
    (path,) = saved(server, saving(format=format))
    with av.open(str(path)) as file:
        context = file.streams.video[0].codec_context
        found = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
    assert found == (1, 1, 1, 1), "bt709 three times, and tv"


WRONG = [
    ({"filename_prefix": ""}, "give a name"),
    ({"filename_prefix": "/abs/clip"}, "absolute"),
    ({"filename_prefix": "nul\0clip"}, "no file name can hold"),
    ({"filename_prefix": "new/../../clip"}, "leads out"),
    ({"filename_prefix": "n" * 250}, "give a shorter one"),
    ({"filename_prefix": "afile/clip"}, "is not a folder"),
    ({"format": None}, "format"),
    ({"format": "avi"}, "format"),
    ({"fps": 0.0}, "fps"),
    ({"quality": 101}, "quality"),
]


@pytest.mark.parametrize("change,message", WRONG, ids=str)
def test_one_wrong_input_is_one_message_before_anything_runs(server, change, message):
    (server.home / "output" / "afile").write_text("a file")
    folders = sorted((server.home / "output").rglob("*"))
    told = json.loads(server.refusal(saving(**change)))
    assert list(told) == ["2"] and len(told["2"]["errors"]) == 1, told
    assert message in json.dumps(told["2"]["errors"])
    assert sorted((server.home / "output").rglob("*")) == folders, "a check makes nothing"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_linked_folder_is_taken_where_comfyui_takes_it(server, tmp_path):
    """ComfyUI 0.33 refuses a link that leads out of the output folder while it saves, we before anything runs."""
    (server.home / "output" / "linked").symlink_to(tmp_path, target_is_directory=True)
    core = server.run(saving("SaveImage", filename_prefix="linked/core"))
    ours = saving(filename_prefix="linked/clip")
    if core["status"]["status_str"] == "success":
        assert saved(server, ours)[0].is_file()
    else:
        assert "link that leads out" in server.refusal(ours) and not list(tmp_path.iterdir())


def test_a_name_of_240_bytes_saves(server):
    for format in ("mp4-h264", "webp"):
        (path,) = saved(server, saving(format=format, filename_prefix="long/" + "n" * 240))
        assert path.is_file()
