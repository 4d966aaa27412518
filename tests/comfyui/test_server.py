"""The pack in a real ComfyUI server, over HTTP: the same pixels, core nodes, progress, interrupt, memory, errors."""

from __future__ import annotations

import json
import os
import time

import drawing
import graphs
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sana_nodes import NODE_CLASS_MAPPINGS
from server import Server


@pytest.fixture(scope="module")
def server(home, reference):
    with Server(home) as running:
        yield running


def test_every_node_is_there_with_our_inputs(server):
    known = json.loads(server.get("/object_info"))
    for name, cls in NODE_CLASS_MAPPINGS.items():
        assert known[name]["category"] == cls.CATEGORY
        assert set(known[name]["input"]["required"]) == set(cls.INPUT_TYPES()["required"])


def test_help_pages_texts_and_templates_are_served(server):
    page = server.get("/extensions/sana-nodes/docs/SanaSCMSample/en.md").decode()
    assert page.startswith("# Sana SCM Sample")
    texts = json.loads(server.get("/i18n"))
    assert texts["en"]["nodeDefs"]["SanaSCMSample"]["display_name"] == "Sana SCM Sample"
    templates = json.loads(server.get("/workflow_templates"))
    assert "SANA-Sprint text to image" in templates["sana-nodes"]


@pytest.mark.parametrize(
    "inputs",
    [{}, {"steps": 1, "seed": 9}, {"steps": 4, "batch_size": 3}, {"width": 96, "height": 160, "guidance_scale": 9.0}],
    ids=["default", "one step", "batch", "size"],
)
def test_example_gives_the_same_pixels_on_both_hosts(server, embedded, inputs):
    graph = graphs.example(**inputs)
    there, here = server.pictures(graph), embedded(graph)
    assert there.std() > 1
    assert drawing.same_pixels(there, here)


@pytest.mark.skipif(not (tiny.DEMO / "transformer").is_dir(), reason="the demo weights are not there")
def test_demo_weights_give_the_same_pixels_on_both_hosts(server, embedded):
    graph = graphs.example("sana-sprint-demo", 256, 256)
    assert drawing.same_pixels(server.pictures(graph), embedded(graph))


def test_image_to_image_gives_the_same_pixels_on_both_hosts(server, embedded, home):
    """LoadImage and VAEEncode too, with a picture whose sides 32 does not divide."""
    pixels = np.random.default_rng(1).integers(0, 256, (100, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "input" / "odd.png")
    graph = graphs.example(denoise=0.6)
    graph["3"] = graphs.node("VAEEncode", pixels=["30", 0], vae=["1", 2])
    graph["30"] = graphs.node("LoadImage", image="odd.png")
    there = server.pictures(graph)
    assert there.shape == (1, 96, 64, 3)
    assert drawing.same_pixels(there, embedded(graph))


def test_ksampler_lcm_and_clip_text_encode_draw_one_step_as_ours(server):
    assert drawing.same_pixels(server.pictures(graphs.with_ksampler(1)), server.pictures(graphs.example(steps=1)))


def test_ksampler_lcm_draws_more_steps(server):
    many = server.pictures(graphs.with_ksampler(3))
    assert many.std() > 1 and not drawing.same_pixels(many, server.pictures(graphs.with_ksampler(1)))


@pytest.mark.parametrize("inputs", [{}, {"steps": 4}, {"max_timesteps": 1.4, "intermediate_timesteps": 0.9}])
def test_sampler_custom_advanced_with_our_sampler_and_sigmas(server, inputs):
    theirs = graphs.with_custom_advanced(graphs.node("SanaSCMSampler"), **inputs)
    assert drawing.same_pixels(server.pictures(theirs), server.pictures(graphs.example(**inputs)))


def test_sampler_custom_advanced_with_core_lcm(server):
    lcm = graphs.with_custom_advanced(graphs.node("KSamplerSelect", sampler_name="lcm"), steps=1)
    assert drawing.same_pixels(server.pictures(lcm), server.pictures(graphs.example(steps=1)))


def test_flux_guidance_sets_the_same_guidance(server):
    graph = graphs.example(guidance_scale=2.0)
    graph["20"] = graphs.node("FluxGuidance", conditioning=["2", 0], guidance=7.5)
    graph["4"]["inputs"]["positive"] = ["20", 0]
    seven = server.pictures(graphs.example(guidance_scale=7.5))
    assert drawing.same_pixels(server.pictures(graph), seven)
    assert not drawing.same_pixels(seven, server.pictures(graphs.example(guidance_scale=2.0)))


@pytest.mark.parametrize("tile,overlap", [(512, 64), (64, 0), (96, 4096)])
def test_decode_tiled_gives_the_same_pixels(server, tile, overlap):
    """Windows know the whole picture, so no tile size shows; rounding alone may move a value by one."""
    graph = graphs.example(width=256, height=160)
    plain = server.pictures(graph).astype(int)
    tiles = {"tile_size": tile, "overlap": overlap, "temporal_size": 64, "temporal_overlap": 8}
    graph["5"] = graphs.node("VAEDecodeTiled", samples=["4", 0], vae=["1", 2], **tiles)
    tiled = server.pictures(graph).astype(int)
    assert tiled.shape == plain.shape and np.abs(tiled - plain).max() <= 1


def test_encode_tiled_gives_the_same_latents(server, reference, home):
    from safetensors.torch import load_file

    pixels = np.random.default_rng(3).integers(0, 256, (200, 170, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "input" / "large.png")
    tiles = {"tile_size": 64, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    latents = []
    for name, more in (("VAEEncode", {}), ("VAEEncodeTiled", tiles)):
        nodes = {
            "1": graphs.node("SanaLoadVAE", vae_name="tiny", weight_dtype="fp32"),
            "2": graphs.node("LoadImage", image="large.png"),
            "3": graphs.node(name, pixels=["2", 0], vae=["1", 0], **more),
            "4": graphs.node("SaveLatent", samples=["3", 0], filename_prefix=f"latents/{name}_"),
        }
        assert server.run(nodes)["status"]["status_str"] == "success"
        latents.append(load_file(sorted((home / "output" / "latents").glob(f"{name}_*"))[-1])["latent_tensor"])
    assert latents[0].shape == (1, 32, 6, 5)
    assert drawing.difference(*latents) < 1e-4


def test_encode_is_diffusers(server, reference, home):
    from safetensors.torch import load_file

    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "input" / "noise.png")
    nodes = {
        "1": graphs.node("SanaLoadVAE", vae_name="tiny", weight_dtype="default"),
        "2": graphs.node("LoadImage", image="noise.png"),
        "3": graphs.node("VAEEncode", pixels=["2", 0], vae=["1", 0]),
        "4": graphs.node("SaveLatent", samples=["3", 0], filename_prefix="latents/encoded"),
    }
    entry = server.run(nodes)
    assert entry["status"]["status_str"] == "success"
    mine = load_file(sorted((home / "output" / "latents").glob("encoded*"))[-1])["latent_tensor"]
    with torch.no_grad():
        theirs = reference.vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255.0 * 2 - 1).latent
    assert drawing.difference(mine, theirs * reference.vae.config.scaling_factor) < 1e-4


def test_progress_moves_with_each_step(server):
    graph = graphs.example(steps=4, seed=77, width=4096, height=4096)  # ComfyUI tells of steps 0.1 s apart or more
    graph["6"] = graphs.node("SaveLatent", samples=["4", 0], filename_prefix="latents/progress")
    del graph["5"]
    prompt_id = server.queue(graph)
    server.wait(prompt_id)
    deadline = time.time() + 10
    while time.time() < deadline:
        seen = [
            e["data"]["value"] for e in server.events if e["type"] == "progress" and e["data"]["prompt_id"] == prompt_id
        ]
        if len(seen) >= 4:
            break
        time.sleep(0.1)
    assert [value for value in seen if value] == [1, 2, 3, 4]


def test_interrupt_stops_within_a_step_and_the_next_prompt_is_right(server):
    before = server.pictures(graphs.example(seed=5))
    prompt_id = server.queue(graphs.example(steps=1000, seed=6, width=512, height=512))
    deadline = time.time() + 60

    def steps_done():
        return [e for e in server.events if e["type"] == "progress" and e["data"]["prompt_id"] == prompt_id]

    while len(steps_done()) < 3 and time.time() < deadline:
        time.sleep(0.02)
    asked, done = time.time(), len(steps_done())
    assert done >= 3
    server.post("/interrupt", {})
    entry = server.wait(prompt_id)
    assert any(event == "execution_interrupted" for event, _ in entry["status"]["messages"])
    time.sleep(0.3)
    assert len([e for e in steps_done() if e["at"] > asked + 0.2]) <= 2
    assert drawing.same_pixels(server.pictures(graphs.example(seed=5, filename_prefix="again")), before)


def test_second_prompt_reuses_the_loaded_models(server):
    server.run(graphs.example(seed=1))
    assert {"1", "2"} <= set(server.cached(server.queue(graphs.example(seed=2))))


def test_errors_reach_the_editor(server, home):
    assert "the nearest are 96 and 128" in server.refusal(graphs.example(width=100))
    assert "the angles must decrease" in server.refusal(graphs.example(intermediate_timesteps=1.5708))
    assert "smaller than min of 1" in server.refusal(graphs.example(steps=0))
    linked = graphs.with_custom_advanced(graphs.node("SanaSCMSampler"))
    linked["13"]["inputs"]["timesteps"] = "0.5, 1.0"
    assert "1 follows 0.5" in server.refusal(linked)
    wrong = graphs.example()
    wrong["3"] = graphs.node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    assert "[1, 16, 8, 8]" in server.error(wrong)
    assert "no pipeline folder called 'absent'" in server.refusal(graphs.example("absent"))
    (home / "models" / "diffusers" / "cut").mkdir(exist_ok=True)
    (home / "models" / "diffusers" / "cut" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "is a FluxPipeline, not a SANA pipeline" in server.error(graphs.example("cut"))


def test_import_costs_the_start_next_to_nothing(server):
    """ComfyUI prints what each pack took to import, and no heavy library may have come with ours."""
    lines = [line for line in server.log.read_text().splitlines() if "seconds" in line and "sana-nodes" in line]
    assert lines, "ComfyUI said nothing of sana-nodes"
    assert float(lines[0].split("seconds")[0].split()[-1]) < 0.5
    assert os.path.basename(lines[0].strip()) == "sana-nodes"  # noqa: PTH119
