"""Image to image, inpainting, SANA, LoRA and ControlNet in a real ComfyUI server, over HTTP."""

from __future__ import annotations

import drawing
import graphs
import numpy as np
import pytest
import tiny
from PIL import Image
from server import Server


@pytest.fixture(scope="module")
def server(home, reference, sana_reference):
    generator = np.random.default_rng(1)
    small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC)
    picture.save(home / "input" / "given.png")
    holed = picture.convert("RGBA")
    holed.putalpha(Image.fromarray(np.repeat([[255] * 48 + [0] * 48], 64, 0).astype(np.uint8)))
    holed.save(home / "input" / "holed.png")
    tiny.write_lora(home / "models" / "loras" / "one.safetensors", 1)
    tiny.write_lora(home / "models" / "loras" / "two.safetensors", 2)
    with Server(home) as running:
        yield running


GRAPHS = {
    "image to image": lambda: graphs.image_to_image("given.png", 0.6),
    "image to image by the schedule": lambda: graphs.image_to_image("given.png", 0.5, "schedule", steps=4),
    "image to image in one node": lambda: graphs.picture(graphs.example(denoise=0.4), "given.png"),
    "inpainting": lambda: graphs.inpaint("holed.png"),
    "SANA": lambda: graphs.sana(),
    "SANA by Euler": lambda: graphs.sana(solver="euler", denoise=0.7, shift=5.0),
    "LoRAs": lambda: graphs.with_lora(graphs.example(), ("one.safetensors", 1.0), ("two.safetensors", -0.5)),
    "ControlNet": lambda: graphs.with_controlnet(graphs.sana(), "given.png", strength=0.8, end_percent=0.6),
    "ControlNet with Sprint": lambda: graphs.with_controlnet(graphs.example(), "given.png"),
    "everything": lambda: graphs.with_lora(
        graphs.with_controlnet(graphs.picture(graphs.sana(denoise=0.5), "given.png"), "given.png"),
        ("one.safetensors", 1.0),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_both_hosts_draw_the_same(server, embedded, name):
    there, here = server.pictures(GRAPHS[name]()), embedded(GRAPHS[name]())
    assert there.std() > 1 and there.shape == here.shape
    assert np.abs(there.astype(int) - here.astype(int)).max() <= 1


def test_image_to_image_keeps_more_the_lower_the_strength(server, home):
    def away(strength):
        return np.abs(server.pictures(graphs.image_to_image("given.png", strength)).astype(int) - round_trip).mean()

    nodes = graphs.picture(graphs.example(), "given.png")
    nodes["5"]["inputs"]["samples"] = ["3", 0]
    round_trip = server.pictures(nodes).astype(int)
    assert away(0.0) == 0 < away(0.05) < away(1.0)


def test_the_two_nodes_are_the_one_with_denoise(server):
    one = server.pictures(graphs.picture(graphs.example(denoise=0.6), "given.png")).astype(int)
    assert np.abs(one - server.pictures(graphs.image_to_image("given.png", 0.6))).max() <= 1


def test_the_noised_latent_works_in_core_samplers(server):
    """SamplerCustomAdvanced with DisableNoise; ComfyUI gives it the seed 0."""
    graph = graphs.image_to_image("given.png", 0.6, seed=0)
    expected = server.pictures(graph)
    graph["60"] = graphs.node("DisableNoise")
    graph["61"] = graphs.node("BasicGuider", model=["1", 0], conditioning=["2", 0])
    graph["62"] = graphs.node("SanaSCMSampler")
    links = {"noise": ["60", 0], "guider": ["61", 0], "sampler": ["62", 0], "sigmas": ["31", 1]}
    graph["4"] = graphs.node("SamplerCustomAdvanced", latent_image=["31", 0], **links)
    assert np.abs(server.pictures(graph).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("core", [False, True], ids=["SanaSCMSample", "KSampler"])
def test_inpainting_leaves_the_rest_of_the_picture(server, home, core):
    graph = graphs.inpaint("holed.png")
    if core:
        settings = {"steps": 2, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1.0, "seed": 3}
        links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["32", 0]}
        graph["4"] = graphs.node("KSampler", **links, **settings)
    drawn = server.pictures(graph)[0].astype(int)
    given = np.asarray(Image.open(home / "input" / "given.png")).astype(int)
    assert np.abs(drawn[:, :48] - given[:, :48]).max() <= 1
    assert np.abs(drawn[:, 48:] - given[:, 48:]).mean() > 5


def test_a_noised_latent_with_a_mask_is_refused(server):
    graph = graphs.image_to_image("holed.png")
    graph["32"] = graphs.node("SetLatentNoiseMask", samples=["3", 0], mask=["30", 1])
    graph["31"]["inputs"]["samples"] = ["32", 0]
    assert "to inpaint, give it to Sana SCM Sample" in server.error(graph)


def test_ksampler_draws_sana_as_our_node(server):
    """euler over BasicScheduler's levels, with ModelSamplingSD3's shift, in KSampler and in SanaFlowSample."""
    core = graphs.sana()
    core["70"] = graphs.node("ModelSamplingSD3", model=["1", 0], shift=5.0)
    core["71"] = graphs.node("BasicScheduler", model=["70", 0], scheduler="simple", steps=4, denoise=1.0)
    ours = core["4"]["inputs"]
    ours.update(model=["70", 0], sigmas=["71", 0], solver="euler")
    mine = server.pictures(core)
    led = {key: ours[key] for key in ("model", "positive", "negative", "latent_image", "seed", "steps", "cfg")}
    core["4"] = graphs.node("KSampler", **led, sampler_name="euler", scheduler="simple", denoise=1.0)
    theirs = server.pictures(core)
    assert mine.std() > 1 and np.abs(mine.astype(int) - theirs).max() <= 1
    core["70"]["inputs"]["shift"] = 1.0
    assert np.abs(server.pictures(core).astype(int) - theirs).max() > 1


def test_sana_in_sampler_custom_advanced(server):
    graph = graphs.sana()
    ours = graph["4"]["inputs"]
    expected = server.pictures(graph)
    schedule = {key: ours[key] for key in ("steps", "shift", "solver", "denoise")}
    led = {key: ours[key] for key in ("model", "positive", "negative", "cfg")}
    graph["11"] = graphs.node("RandomNoise", noise_seed=ours["seed"])
    graph["12"] = graphs.node("CFGGuider", **led)
    graph["13"] = graphs.node("SanaFlowSampler", solver=ours["solver"])
    graph["14"] = graphs.node("SanaFlowSigmas", model=ours["model"], **schedule)
    links = {"noise": ["11", 0], "guider": ["12", 0], "sampler": ["13", 0], "sigmas": ["14", 0]}
    graph["4"] = graphs.node("SamplerCustomAdvanced", latent_image=ours["latent_image"], **links)
    assert drawing.same_pixels(server.pictures(graph), expected)


def test_core_lora_loader_draws_as_ours(server):
    graph = graphs.example()
    graph["50"] = graphs.node("LoraLoaderModelOnly", model=["1", 0], lora_name="one.safetensors", strength_model=0.7)
    graph["4"]["inputs"]["model"] = ["50", 0]
    ours = server.pictures(graphs.with_lora(graphs.example(), ("one.safetensors", 0.7)))
    assert drawing.same_pixels(server.pictures(graph), ours)
    assert not drawing.same_pixels(server.pictures(graphs.example()), ours)


def test_controlnet_errors_reach_the_editor(server):
    graph = graphs.with_controlnet(graphs.sana(), "given.png")
    del graph["42"]["inputs"]["vae"]
    said = dict(server.run(graph)["status"]["messages"])["execution_error"]
    assert said["exception_type"] == "SanaError"
    assert "connect SANA's VAE to the vae input of Apply ControlNet" in said["exception_message"]
    assert "no ControlNet called 'absent'" in server.refusal(
        graphs.with_controlnet(graphs.sana(), "given.png", "absent")
    )
