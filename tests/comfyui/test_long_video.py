"""LongSANA in a real ComfyUI server, over HTTP: the same frames as without it, core nodes, interrupts and errors."""

from __future__ import annotations

import json
import time

import drawing
import pytest
from graphs import node
from reading import decoded
from server import Server


@pytest.fixture(scope="module")
def server(home, long_folder, video_references):
    with Server(home) as running:
        yield running


BLOCKS = {"timesteps": "1000, 960, 889, 727", "block_frames": 2, "cached_blocks": 0, "recache": True}
FILE = {"fps": 16.0, "format": "mkv-ffv1", "quality": 80, "filename_prefix": "video/long"}


def prompt(text: str) -> dict:
    given = {"clip": ["1", 1], "prompt": text, "negative_prompt": "", "motion_score": 10, "max_sequence_length": 300}
    return node("SanaEncodeVideoPrompt", **given, clean_caption=False, instruction="long")


def base(pipeline="tiny-long") -> dict:
    """A loader, and a story of two prompts in node 5."""
    return {
        "1": node("SanaLoadPipeline", pipeline=pipeline, weight_dtype="default"),
        "2": prompt("a red ring"),
        "3": node("SanaPromptSchedule", conditioning=["2", 0], start=0.0, fps=16.0),
        "4": prompt("a blue square falls"),
        "5": node("SanaPromptSchedule", conditioning=["4", 0], start=1.0, fps=16.0, previous=["3", 0]),
    }


def streamed(frames=25, positive="5", **given) -> dict:
    asked = {"model": ["1", 0], "positive": [positive, 0], "vae": ["1", 2], "width": 32, "height": 32}
    return {**base(), "9": node("SanaLongVideoSave", **asked, frames=frames, seed=5, **{**BLOCKS, **FILE, **given})}


def decoding(graph: dict, latent: str, output=0) -> dict:
    return {**graph, "9": node("SanaDecodeSaveVideo", samples=[latent, output], vae=["1", 2], **FILE)}


def sampled(frames=25, positive="5", pipeline="tiny-long", sampler="SanaLongVideoSample", **given) -> dict:
    graph = base(pipeline)
    size = {"vae": ["1", 2], "width": 32, "height": 32, "frames": frames, "batch_size": 1}
    graph["6"] = node("SanaEmptyVideoLatent", **size)
    asked = {"model": ["1", 0], "positive": [positive, 0], "latent_image": ["6", 0], "seed": 5}
    graph["7"] = node(sampler, **asked, **{**BLOCKS, **given})
    return decoding(graph, "7")


def with_custom_advanced(sampler: dict, positive="5", cfg=None, frames=25, output=0) -> dict:
    graph = sampled(frames)
    graph["10"] = node("RandomNoise", noise_seed=5)
    graph["11"] = node("BasicGuider", model=["1", 0], conditioning=[positive, 0])
    if cfg is not None:
        graph["11"] = node("CFGGuider", model=["1", 0], positive=[positive, 0], negative=["2", 0], cfg=cfg)
    graph["12"], graph["13"] = sampler, node("SanaLongVideoSigmas", timesteps=BLOCKS["timesteps"])
    links = {"noise": ["10", 0], "guider": ["11", 0], "sampler": ["12", 0], "sigmas": ["13", 0]}
    graph["7"] = node("SamplerCustomAdvanced", latent_image=["6", 0], **links)
    return decoding(graph, "7", output)


OURS = node("SanaLongVideoSampler", block_frames=2, cached_blocks=0, recache=True)


def files(server, graph) -> list:
    """The paths of what a run saved."""
    entry = server.wait(server.queue(graph), 400)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:3000]
    shown = [item for out in entry["outputs"].values() for key in ("images", "files") for item in out.get(key, [])]
    return [server.home / "output" / item["subfolder"] / item["filename"] for item in shown]


def frames_of(server, graph):
    (path,) = files(server, graph)
    return decoded(path)


def has(server, *names: str) -> bool:
    known = json.loads(server.get("/object_info"))
    return all(name in known for name in names)


def test_the_same_frames_streamed_sampled_and_without_comfyui(server, embedded_files):
    whole = frames_of(server, streamed())
    assert len(whole) == 25 and drawing.same_pixels(frames_of(server, sampled()), whole)
    assert drawing.same_pixels(decoded(embedded_files(streamed())[0]), whole)


def test_a_clip_is_continued_within_a_graph_and_from_a_file(server):
    """A state that is used twice gives the same frames twice: the second run does not change the first one's."""
    expected = frames_of(server, streamed(41, "3"))
    graph = streamed(25, "3")
    graph["10"] = node("SanaSaveVideoState", state=["9", 1], filename_prefix="states/over http")
    asked = {**graph["9"]["inputs"], "frames": 16, "state": ["10", 0]}
    graph["11"], graph["12"] = (
        node("SanaLongVideoSave", **asked),
        node(
            "SanaLongVideoSave",
            **asked,
        ),
    )
    graph["12"]["inputs"]["filename_prefix"] = "video/again"
    saved = files(server, graph)
    assert len(saved) == 3
    parts = {path.name.split("_")[0] + str(len(decoded(path))): decoded(path) for path in saved}
    assert drawing.same_pixels(parts["long25"], expected[:25])
    assert drawing.same_pixels(parts["long16"], expected[25:]) and drawing.same_pixels(parts["again16"], expected[25:])
    choices = json.loads(server.get("/object_info/SanaLoadVideoState"))["SanaLoadVideoState"]["input"]["required"]
    (name,) = (name for name in choices["state_name"][0] if "over http" in name)
    later = streamed(16, "3")
    later["10"] = node("SanaLoadVideoState", state_name=name)
    later["9"]["inputs"]["state"] = ["10", 0]
    assert drawing.same_pixels(frames_of(server, later), expected[25:])


def test_sampler_custom_advanced(server):
    """Of one block it is Sana Long Video Sample; the denoised output is the whole video's too."""
    one = {"block_frames": 7}
    graph = with_custom_advanced(node("SanaLongVideoSampler", **{**OURS["inputs"], **one}), positive="3")
    ours = sampled(positive="3", **one)
    assert drawing.same_pixels(frames_of(server, graph), frames_of(server, ours))
    several = frames_of(server, with_custom_advanced(OURS))
    assert len(several) == 25 and not drawing.same_pixels(several, frames_of(server, sampled()))
    assert drawing.same_pixels(frames_of(server, with_custom_advanced(OURS, output=1)), several)


def test_cores_own_sampler_for_such_models(server):
    """ComfyUI 0.33's, whose noise is its own; frames from a start image too."""
    if not has(server, "SamplerARVideo", "ARVideoI2V"):
        pytest.skip("this ComfyUI has no autoregressive video nodes")
    core = node("SamplerARVideo", num_frame_per_block=2)
    first = frames_of(server, with_custom_advanced(core, positive="3"))
    assert len(first) == 25 and drawing.same_pixels(frames_of(server, with_custom_advanced(core, positive="3")), first)
    assert "several prompts in SamplerARVideo" in server.error(with_custom_advanced(core))
    latent = {"width": 32, "height": 32, "length": 25, "batch_size": 1}
    empty = with_custom_advanced(core, positive="3")
    empty["6"] = node("EmptyARVideoLatent", **latent)
    assert drawing.same_pixels(frames_of(server, empty), first)
    graph = with_custom_advanced(core, positive="3")
    graph["20"] = node("EmptyImage", width=32, height=32, batch_size=1, color=0x3060C0)
    graph["6"] = node("ARVideoI2V", model=["1", 0], vae=["1", 2], start_image=["20", 0], **latent)
    graph["11"]["inputs"]["model"], graph["7"]["inputs"]["latent_image"] = ["6", 0], ["6", 1]
    started = frames_of(server, graph)
    assert len(started) == 25 and not drawing.same_pixels(started, first)


def ordinary(kind: str, **given) -> dict:
    graph = sampled()
    given = {
        "model": ["1", 0],
        "positive": ["3", 0],
        "negative": ["2", 0],
        "latent_image": ["6", 0],
        "seed": 5,
        **given,
    }
    graph["7"] = node(kind, **given)
    return decoding(graph, "7")


K = {"steps": 4, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1.0}
FLOW = {"steps": 4, "cfg": 1.0, "shift": 0.0, "solver": "euler", "denoise": 1.0, "add_noise": "enable"}


def test_ordinary_samplers_say_which_node_does(server):
    for graph in (ordinary("KSampler", **K), ordinary("SanaFlowSample", **FLOW)):
        assert "LongSANA" in (said := server.problem(graph)) and " Sana Long Video Sample" in said
    assert "cfg is 6, but LongSANA has no guidance" in server.error(with_custom_advanced(OURS, cfg=6.0))
    assert len(frames_of(server, with_custom_advanced(OURS, cfg=1.0))) == 25


STEPS = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_caches_of_steps_are_refused(server, name):
    graph = sampled()
    graph["8"] = node(name, model=["1", 0], **STEPS)
    graph["7"]["inputs"]["model"] = ["8", 0]
    assert "LongSANA does not go with EasyCache or LazyCache, which leave out calls" in server.error(graph)


def test_context_windows_are_refused(server):
    graph = sampled()
    kind = "ContextWindowsManual" if has(server, "ContextWindowsManual") else "WanContextWindowsManual"
    known = json.loads(server.get(f"/object_info/{kind}"))[kind]["input"]["required"]
    values = {key: spec[1]["default"] for key, spec in known.items() if len(spec) > 1 and "default" in spec[1]}
    choices = {key: spec[1]["options"][0] for key, spec in known.items() if len(spec) > 1 and "options" in spec[1]}
    graph["8"] = node(kind, **{**choices, **values, "model": ["1", 0]})
    graph["7"]["inputs"]["model"] = ["8", 0]
    assert "LongSANA does not go with context windows" in server.error(graph)


def test_areas_of_prompts_are_refused(server):
    graph = sampled(positive="8")
    graph["8"] = node(
        "ConditioningSetAreaPercentage", conditioning=["3", 0], width=0.5, height=0.5, x=0, y=0, strength=1.0
    )
    assert "LongSANA does not go with areas of prompts" in server.error(graph)


def test_an_ordinary_model_in_a_long_node(server):
    graph = sampled(pipeline="tiny-video")
    assert "this model is SANA-Video, and Sana Long Video Sample is for LongSANA" in server.refusal(graph)
    advanced = with_custom_advanced(OURS, positive="3")
    advanced["1"]["inputs"]["pipeline"] = "tiny-video"
    assert "this MODEL is SANA-Video, not LongSANA" in server.error(advanced)


def test_an_interrupt_leaves_the_blocks_so_far_and_the_next_run_is_right(server):
    folder = server.home / "output" / "video"
    expected = frames_of(server, streamed(25, "3"))
    before = set(folder.iterdir())
    prompt_id = server.queue(streamed(4001, "3"))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not _part_grows(folder):
        time.sleep(0.05)
    server.post("/interrupt", {})
    entry = server.wait(prompt_id, 300)
    assert [event for event, _ in entry["status"]["messages"] if event == "execution_interrupted"]
    (left,) = set(folder.iterdir()) - before
    frames = decoded(left)
    assert 25 <= len(frames) < 4001 and drawing.same_pixels(frames[:25], expected)
    assert drawing.same_pixels(frames_of(server, streamed(25, "3", filename_prefix="video/after")), expected)


def _part_grows(folder) -> bool:
    return any(path.name.startswith(".") and path.stat().st_size > 120_000 for path in folder.iterdir())


def test_a_core_vae_is_refused_where_it_cannot_stream(server, home):
    import tiny
    from safetensors.torch import save_file

    weights = tiny.wan_vae(base_dim=96, num_res_blocks=2, dim_mult=[1, 2, 4, 4])
    named = {tiny.original_wan_name(name): value.contiguous() for name, value in weights.state_dict().items()}
    save_file(named, home / "models" / "vae" / "core_wan.safetensors")
    graph = streamed()
    graph["20"] = node("VAELoader", vae_name="core_wan.safetensors")
    graph["9"]["inputs"]["vae"] = ["20", 0]
    assert "load the VAE with Sana Load VAE" in server.error(graph)
