"""Core nodes between ours in a real ComfyUI server, over HTTP; docs/core-nodes.md holds what each must do."""

from __future__ import annotations

import json

import drawing
import graphs
import numpy as np
import pytest
from safetensors.torch import load_file
from server import Server


@pytest.fixture(scope="module")
def server(home, reference, video_references):
    with Server(home) as running:
        yield running


def filled(server, class_type: str, **inputs) -> dict:
    """A node with its widgets' defaults for what is not given, as the editor places it."""
    known = json.loads(server.get(f"/object_info/{class_type}"))[class_type]["input"]
    chosen = {}
    for kind in ("required", "optional"):
        for name, spec in known.get(kind, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
            if "default" in options or choices:
                chosen[name] = options.get("default", choices[0] if choices else None)
    return graphs.node(class_type, **{**chosen, **inputs})


def between(server, graph: dict, input_name: str, class_type: str, key: str, **inputs) -> dict:
    """The graph with a core node before one input of its sampler, node 4."""
    graph["90"] = filled(server, class_type, **{key: graph["4"]["inputs"][input_name], **inputs})
    graph["4"]["inputs"][input_name] = ["90", 0]
    return graph


REFUSED = [
    ("model", "HyperTile", "model", {}, "self-attention"),
    ("model", "TomePatchModel", "model", {}, "self-attention"),
    ("model", "PatchModelAddDownscale", "model", {}, "a UNet's input blocks"),
    ("model", "FreeU_V2", "model", {}, "not a UNet and has no model_channels"),
    ("model", "PerturbedAttentionGuidance", "model", {}, "self-attention"),
    ("model", "SkipLayerGuidanceDiT", "model", {"start_percent": 0.0, "end_percent": 1.0}, "whole blocks"),
    ("model", "ModelSamplingSD3", "model", {}, "SANA-Sprint's sigmas are angles"),
    ("model", "ModelSamplingDiscrete", "model", {"sampling": "eps", "zsnr": False}, "SANA-Sprint's sigmas are angles"),
    ("positive", "ReferenceLatent", "conditioning", {"latent": ["3", 0]}, "a reference image"),
]


@pytest.mark.parametrize(("place", "name", "key", "inputs", "said"), REFUSED, ids=[case[1] for case in REFUSED])
def test_a_node_that_sana_cannot_follow_says_so(server, place, name, key, inputs, said):
    error = server.error(between(server, graphs.example(), place, name, key, **inputs))
    assert said in error and "SANA" in error


def test_the_samplers_that_angles_do_not_suit_are_refused(server):
    graph = graphs.with_ksampler(2)
    graph["4"]["inputs"]["sampler_name"] = "euler"
    assert "which euler reads as noise levels: choose the sampler lcm" in server.error(graph)


def test_another_models_schedule_is_refused_on_video(server):
    graph = graphs.video_with_custom_advanced(graphs.video())
    graph["14"] = filled(server, "KarrasScheduler")
    assert "the noise levels of SANA and SANA-Video go from 1 down to 0" in server.error(graph)


def test_a_sampling_that_is_not_flow_matching_is_refused_on_video(server):
    graph = between(server, graphs.video(), "model", "ModelSamplingFlux", "model")
    assert "times up to 1000, not with ModelSamplingFlux" in server.error(graph)


def test_clip_and_checkpoint_saving_say_what_saves(server):
    graph = graphs.example()
    for name, parts in (("CLIPSave", {"clip": ["1", 1]}), ("CheckpointSave", {"model": ["1", 0], "clip": ["1", 1]})):
        vae = {"vae": ["1", 2]} if name == "CheckpointSave" else {}
        saving = {"1": graph["1"], "2": filled(server, name, **parts, **vae)}
        assert "ModelSave saves the transformer" in server.error(saving)


SAME = [
    ("positive", "ConditioningCombine", "conditioning_1", {"conditioning_2": ["2", 0]}),
    ("positive", "ConditioningSetArea", "conditioning", {"width": 256, "height": 256, "x": 0, "y": 0}),
    ("positive", "ConditioningSetTimestepRange", "conditioning", {"start": 0.0, "end": 1.0}),
    ("model", "EasyCache", "model", {"reuse_threshold": 0.0, "start_percent": 0.0, "end_percent": 1.0}),
    ("model", "ModelMergeSimple", "model1", {"model2": ["1", 0], "ratio": 1.0}),
    ("model", "DifferentialDiffusion", "model", {}),
]


@pytest.mark.parametrize(("place", "name", "key", "inputs"), SAME, ids=[case[1] for case in SAME])
def test_a_node_that_has_nothing_to_do_changes_nothing(server, place, name, key, inputs):
    plain = server.pictures(graphs.example(width=256, height=256))
    drawn = server.pictures(between(server, graphs.example(width=256, height=256), place, name, key, **inputs))
    assert np.abs(drawn.astype(int) - plain.astype(int)).max() <= 1


def latent_of(server, graph: dict, source: str, prefix: str):
    """A run's LATENT, by core SaveLatent."""
    for key in [key for key, node in graph.items() if node["class_type"].startswith(("VAEDecode", "Save", "SanaSave"))]:
        del graph[key]
    graph["99"] = graphs.node("SaveLatent", samples=[source, 0], filename_prefix=f"latents/{prefix}")
    entry = server.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return load_file(sorted((server.home / "output" / "latents").glob(f"{prefix}_*"))[-1])["latent_tensor"]


def test_an_area_lies_where_it_was_asked_for(server):
    """One step with a second prompt on the right half: the left half's latent is as without it."""

    def graph():
        return graphs.example(width=512, height=256, steps=1)

    plain = latent_of(server, graph(), "4", "plain")
    placed = graph()
    placed["91"] = filled(server, "SanaEncodePrompt", clip=["1", 1], text="a blue square")
    where = {"width": 256, "height": 256, "x": 256, "y": 0, "strength": 1.0}
    placed["92"] = filled(server, "ConditioningSetArea", conditioning=["91", 0], **where)
    between(server, placed, "positive", "ConditioningCombine", "conditioning_1", conditioning_2=["92", 0])
    changed = (latent_of(server, placed, "4", "placed") - plain).abs().amax((0, 1, 2))
    assert (changed[:8] < 1e-5).all() and (changed[8:] > 1e-4).all()


def test_repeated_latents_draw_as_many(server):
    graph = between(server, graphs.example(), "latent_image", "RepeatLatentBatch", "samples", amount=3)
    assert server.pictures(graph).shape[0] == 3


def test_a_saved_model_draws_the_same_when_loaded_again(server, home):
    before = server.pictures(graphs.example())
    saving = {
        "1": graphs.example()["1"],
        "2": filled(server, "ModelSave", model=["1", 0], filename_prefix="over-http/sprint"),
    }
    assert server.run(saving)["status"]["status_str"] == "success"
    file = next((home / "output" / "over-http").glob("sprint_*.safetensors"))
    file.rename(home / "models" / "diffusion_models" / "over-http.safetensors")
    graph = graphs.example()
    graph["93"] = filled(server, "SanaLoadTransformer", model_name="over-http.safetensors")
    graph["4"]["inputs"]["model"] = ["93", 0]
    assert drawing.same_pixels(server.pictures(graph), before)


def test_a_shift_on_video_is_what_our_sampler_samples_with(server):
    def frames(graph):
        graph["5"] = graphs.node("VAEDecode", samples=["4", 0], vae=["1", 2])
        graph["6"] = graphs.node("SaveImage", images=["5", 0], filename_prefix="shifted")
        return server.pictures(graph).astype(int)

    shifted = frames(between(server, graphs.video(), "model", "ModelSamplingSD3", "model", shift=2.0))
    assert np.abs(shifted - frames(graphs.video(shift=2.0))).max() <= 2
    assert np.abs(shifted - frames(graphs.video())).max() > 2


def test_halves_of_a_schedule_give_the_whole_on_video(server):
    whole = graphs.video_with_custom_advanced(graphs.video(solver="euler"))
    whole["15"] = graphs.node("SplitSigmas", sigmas=["14", 0], step=1)
    whole["16"] = graphs.node("DisableNoise")
    halves = {**whole["4"]["inputs"], "sigmas": ["15", 0]}
    whole["17"] = graphs.node("SamplerCustomAdvanced", **halves)
    rest = {**whole["4"]["inputs"], "sigmas": ["15", 1], "noise": ["16", 0], "latent_image": ["17", 0]}
    whole["18"] = graphs.node("SamplerCustomAdvanced", **rest)
    whole["19"] = graphs.node("LatentSubtract", samples1=["18", 0], samples2=["4", 0])
    assert latent_of(server, whole, "19", "halves").abs().max() < 1e-4
