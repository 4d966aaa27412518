"""SANA-Video in a real ComfyUI server, over HTTP: files that play, core nodes around ours, and errors."""

from __future__ import annotations

import json
import os
import time

import av
import drawing
import graphs
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from reading import decoded, tags_in
from sana_nodes.tools import workflows
from server import Server


@pytest.fixture(scope="module")
def server(home, video_references):
    link = home / "models" / "diffusers" / "sana-video-demo"
    if not link.exists() and tiny.VIDEO_DEMO.is_dir():
        link.symlink_to(tiny.VIDEO_DEMO, target_is_directory=True)
    with Server(home) as running:
        yield running


def files(server, graph) -> list:
    """The paths of what a run saved."""
    entry = server.run(graph)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:3000]
    shown = [item for out in entry["outputs"].values() for key in ("images", "files") for item in out.get(key, [])]
    return [server.home / "output" / item["subfolder"] / item["filename"] for item in shown]


def frames_of(server, graph) -> torch.Tensor:
    (path,) = files(server, graph)
    return decoded(path)


def lossless(**inputs) -> dict:
    return graphs.video(format="mkv-ffv1", **inputs)


EXAMPLES = ["sana_video_text_to_video", "sana_video_image_to_video", "sana_video_continue"]


@pytest.mark.skipif(not tiny.VIDEO_DEMO.is_dir(), reason="the video demo weights are not there")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_play(server, embedded_files, name):
    graph = json.loads((graphs.EXAMPLES / f"{name}.json").read_text())
    workflow = json.loads(workflows.text(name))
    prompt_id = server.post(
        "/prompt",
        {"prompt": graph, "client_id": server.client, "extra_data": {"extra_pnginfo": {"workflow": workflow}}},
    )["prompt_id"]
    entry = server.wait(prompt_id, 400)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:3000]
    (shown,) = (out for out in entry["outputs"].values() if "images" in out)
    assert shown["animated"] == [True]
    path = server.home / "output" / shown["images"][0]["subfolder"] / shown["images"][0]["filename"]
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 128, 128)
        assert float(stream.average_rate) == 8.0
    assert len(decoded(path)) == (33 if name == "sana_video_continue" else 17)
    assert tags_in(path) == {"workflow": workflow, "prompt": graph}
    (here,) = embedded_files(graph)
    apart = (decoded(path) - decoded(here)).abs().mean()
    assert apart < 0.004, "x264 makes 0.0014 of one step in 0.002 % of the pixels; its own loss is 0.006"


@pytest.mark.skipif(not tiny.VIDEO_DEMO.is_dir(), reason="the video demo weights are not there")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_the_same_pixels_on_both_hosts(server, embedded_files, name):
    graph = json.loads((graphs.EXAMPLES / f"{name}.json").read_text())
    for one in graph.values():
        if one["class_type"] in ("SanaSaveVideo", "SanaDecodeSaveVideo"):
            one["inputs"]["format"] = "mkv-ffv1"
    assert drawing.same_pixels(frames_of(server, graph), decoded(embedded_files(graph)[0]))


@pytest.mark.parametrize("pipeline", ["tiny-video", "tiny-video-ltx2"])
@pytest.mark.parametrize("inputs", [{}, {"solver": "euler", "cfg": 1.0}, {"batch_size": 2}], ids=str)
def test_the_same_frames_on_both_hosts(server, embedded_files, pipeline, inputs):
    graph = lossless(pipeline=pipeline, **inputs)
    assert drawing.same_pixels(frames_of(server, graph), decoded(embedded_files(graph)[0]))


def test_from_a_picture_the_same_frames_on_both_hosts(server, embedded_files, home):
    pixels = np.random.default_rng(1).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "input" / "start.png")
    graph = graphs.from_picture(lossless(), "start.png")
    assert drawing.same_pixels(frames_of(server, graph), decoded(embedded_files(graph)[0]))


@pytest.mark.parametrize("solver", ["dpm_solver++", "euler"])
@pytest.mark.parametrize("picture", [False, True], ids=["text", "picture"])
def test_sampler_custom_advanced(server, home, solver, picture):
    Image.fromarray(np.full((64, 64, 3), 120, dtype=np.uint8)).save(home / "input" / "plain.png")
    ours = lossless(solver=solver)
    ours = graphs.from_picture(ours, "plain.png") if picture else ours
    assert drawing.same_pixels(frames_of(server, graphs.video_with_custom_advanced(ours)), frames_of(server, ours))


def test_ksampler_euler_is_our_euler_over_its_own_levels(server):
    """Core KSampler and SanaFlowSample with BasicScheduler's levels: the same samples from the same seed."""
    graph = lossless(solver="euler", steps=4, seed=3)
    given = graph["4"]["inputs"]
    core = json.loads(json.dumps(graph))
    links = {key: given[key] for key in ("model", "positive", "negative", "latent_image", "seed", "cfg", "steps")}
    core["4"] = graphs.node("KSampler", **links, sampler_name="euler", scheduler="simple", denoise=1.0)
    graph["20"] = graphs.node("BasicScheduler", model=["1", 0], scheduler="simple", steps=4, denoise=1.0)
    given["sigmas"] = ["20", 0]
    assert (frames_of(server, core) - frames_of(server, graph)).abs().max() <= 1 / 255 + 1e-6


def test_core_ksampler_holds_the_first_frame(server, home):
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "input" / "held.png")
    graph = graphs.from_picture(lossless(), "held.png")
    given = graph["4"]["inputs"]
    links = {key: given[key] for key in ("model", "positive", "negative", "latent_image", "seed", "cfg", "steps")}
    core = json.loads(json.dumps(graph))
    core["4"] = graphs.node("KSampler", **links, sampler_name="dpmpp_2m", scheduler="normal", denoise=1.0)
    ours, theirs = frames_of(server, graph), frames_of(server, core)
    assert (ours[0] - theirs[0]).abs().max() <= 2 / 255
    assert (ours[-1] - theirs[-1]).abs().max() > 0.01


def test_model_sampling_sd3_shifts(server):
    plain, shifted = lossless(), lossless()
    shifted["21"] = graphs.node("ModelSamplingSD3", model=["1", 0], shift=2.0)
    shifted["4"]["inputs"]["model"] = ["21", 0]
    asked = lossless(shift=2.0)
    assert (frames_of(server, shifted) - frames_of(server, plain)).abs().max() > 2 / 255
    assert (frames_of(server, shifted) - frames_of(server, asked)).abs().max() <= 1 / 255 + 1e-6


def easy_cached(threshold: float) -> dict:
    graph = lossless(steps=20)
    settings = {"reuse_threshold": threshold, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    graph["22"] = graphs.node("EasyCache", model=["1", 0], **settings)
    graph["4"]["inputs"]["model"] = ["22", 0]
    return graph


def test_easy_cache_skips_what_it_is_told_to(server):
    """With a threshold that nothing passes every step is computed, and the frames are those without it."""

    def skipped() -> int:
        said = [line for line in server.log.read_text().splitlines() if "EasyCache - skipped" in line]
        return int(said[-1].split("skipped ")[1].split("/")[0])

    exact = frames_of(server, lossless(steps=20))
    assert drawing.same_pixels(frames_of(server, easy_cached(0.0)), exact) and skipped() == 0
    near = frames_of(server, easy_cached(0.2))
    assert skipped() > 0 and near.std() > 0.01 and not drawing.same_pixels(near, exact)


def test_create_video_and_save_video(server):
    graph = lossless()
    graph["7"] = graphs.node("CreateVideo", images=["5", 0], fps=10.0)
    graph["8"] = graphs.node("SaveVideo", video=["7", 0], filename_prefix="video/core", format="auto", codec="auto")
    saved = {path.suffix: path for path in files(server, graph)}
    assert len(decoded(saved[".mp4"])) == 5
    assert (decoded(saved[".mp4"]) - decoded(saved[".mkv"])).abs().mean() < 0.1


def test_decode_and_save_in_pieces_gives_the_same_frames(server, embedded_files):
    whole, pieces = lossless(frames=17), lossless(frames=17)
    given = pieces.pop("6")["inputs"]
    pieces.pop("5")
    given.pop("images")
    pieces["6"] = graphs.node("SanaDecodeSaveVideo", samples=["4", 0], vae=["1", 2], **given)
    assert drawing.same_pixels(frames_of(server, whole), frames_of(server, pieces))
    assert drawing.same_pixels(frames_of(server, whole), decoded(embedded_files(pieces)[0]))


@pytest.mark.parametrize("node", ["VAEDecodeTiled", "VAEEncode"])
def test_core_vae_nodes(server, node):
    graph = lossless(frames=9)
    if node == "VAEDecodeTiled":
        tiles = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
        graph["5"] = graphs.node(node, samples=["4", 0], vae=["1", 2], **tiles)
    else:
        graph["23"] = graphs.node(node, pixels=["5", 0], vae=["1", 2])
        graph["24"] = graphs.node("VAEDecode", samples=["23", 0], vae=["1", 2])
        graph["6"]["inputs"]["images"] = ["24", 0]
    shown = frames_of(server, graph)
    assert shown.shape == (9, 64, 64, 3) and shown.std() > 0.01
    if node == "VAEDecodeTiled":
        assert drawing.same_pixels(shown, frames_of(server, lossless(frames=9)))


def test_formats_frames_and_metadata(server):
    for format in ("mp4-h264", "webm-vp9", "gif", "webp"):
        (path,) = files(server, graphs.video(format=format))
        assert set(tags_in(path)) == {"prompt"} and tags_in(path)["prompt"]["4"]["class_type"] == "SanaFlowSample"
    graph = lossless()
    graph["6"] = graphs.node("SanaSaveFrames", images=["5", 0], format="png", filename_prefix="frames/test")
    saved = files(server, graph)
    assert [path.name for path in saved] == [f"test_{i:05}_.png" for i in range(1, 6)]


def test_progress_while_saving(server):
    started = len(server.events)
    prompt_id = server.queue(graphs.video(seed=77))
    server.wait(prompt_id)
    time.sleep(0.3)
    seen = [e["data"] for e in server.events[started:] if e["type"] == "progress" and e["data"].get("node") == "6"]
    assert seen and seen[-1]["value"] == seen[-1]["max"] == 5


def test_an_interrupt_while_saving_leaves_no_file(server):
    folder = server.home / "output" / "stopped"
    graph = graphs.video(frames=401, width=128, height=128, steps=1, cfg=1.0, filename_prefix="stopped/clip")
    prompt_id = server.queue(graph)
    deadline = time.time() + 300
    while time.time() < deadline and not any(folder.glob(".clip*")):
        time.sleep(0.02)
    assert any(folder.glob(".clip*")), "saving never began"
    server.post("/interrupt", {})
    entry = server.wait(prompt_id)
    assert [e for e, _ in entry["status"]["messages"] if e == "execution_interrupted"]
    assert not list(folder.iterdir())
    assert frames_of(server, lossless()).shape[0] == 5, "the next prompt is right"


BEFORE_ANYTHING_RUNS = [
    ({"fps": 0.0}, "fps"),
    ({"frames": 0}, "frames"),
    ({"frames": -3}, "frames"),
    ({"width": 100}, "nearest are 96 and 112"),
    ({"cfg": 0.5}, "cfg"),
    ({"filename_prefix": "../out"}, "filename_prefix"),
]


@pytest.mark.parametrize("inputs,said", BEFORE_ANYTHING_RUNS, ids=str)
def test_bad_values_are_refused_before_anything_runs(server, inputs, said):
    assert said in server.refusal(graphs.video(**inputs))


def test_models_and_vaes_that_do_not_belong(server):
    sprint_in_video = lossless()
    sprint_in_video["30"] = graphs.node("SanaLoadPipeline", pipeline="tiny", weight_dtype="default")
    sprint_in_video["4"]["inputs"]["model"] = ["30", 0]
    assert "Sana Flow Sample is for SANA and SANA-Video" in server.refusal(sprint_in_video)
    video_in_sprint = graphs.example(pipeline="tiny-video")
    assert "sample it with Sana Flow Sample" in server.refusal(video_in_sprint)
    other_vae = lossless()
    other_vae["31"] = graphs.node("SanaLoadPipeline", pipeline="tiny-video-ltx2", weight_dtype="default")
    other_vae["3"]["inputs"]["vae"] = ["31", 2]
    assert "the Wan 2.1 VAE" in server.problem(other_vae)
    wrong_decoder = lossless()
    wrong_decoder["31"] = other_vae["31"]
    wrong_decoder["5"]["inputs"]["vae"] = ["31", 2]
    assert "the Wan 2.1 VAE" in server.problem(wrong_decoder)
    pictures_vae = lossless()
    pictures_vae["30"] = sprint_in_video["30"]
    pictures_vae["3"]["inputs"]["vae"] = ["30", 2]
    assert "DC-AE" in server.problem(pictures_vae)


def test_no_metadata_where_comfyui_is_told_so(home, video_references):
    with Server(home, "--disable-metadata") as quiet:
        (path,) = files(quiet, graphs.video(filename_prefix="video/quiet"))
        assert tags_in(path) == {} and b"SanaFlowSample" not in path.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_core_wan_vae_with_our_model(server, home):
    """Core VAELoader reads a whole Wan 2.1 VAE; our loader reads the same file, and both give the same frames."""
    path = home / "models" / "vae" / "wan_2.1_vae.safetensors"
    if not path.exists():
        tiny.write_original_wan_vae(path)
    core, ours = lossless(), lossless()
    core["40"] = graphs.node("VAELoader", vae_name=path.name)
    ours["40"] = graphs.node("SanaLoadVAE", vae_name=path.name, weight_dtype="default")
    for graph in (core, ours):
        graph["3"]["inputs"]["vae"] = graph["5"]["inputs"]["vae"] = ["40", 0]
    there, here = frames_of(server, core), frames_of(server, ours)
    assert there.std() > 0.01 and (there - here).abs().mean() < 2 / 255
    for graph in (core, ours):
        graph["41"] = graphs.node("VAEEncode", pixels=["5", 0], vae=["40", 0])
        graph["42"] = graphs.node("VAEDecode", samples=["41", 0], vae=["40", 0])
        graph["6"]["inputs"]["images"] = ["42", 0]
    assert (frames_of(server, core) - frames_of(server, ours)).abs().mean() < 3 / 255
