"""Checks before a run: one message, on the one input that is wrong, from the whole graph."""

from __future__ import annotations

import inspect

import graphs
import pytest
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.host import before_run
from sana_nodes.host.embedded import graph as executor


@pytest.fixture(autouse=True)
def forget():
    yield
    before_run.remember(None)


def problems(graph: dict) -> dict[tuple[str, str], str]:
    """What ComfyUI would say: node id and input to a message, for each input that a node's check names."""
    before_run.remember(graph)
    found = {}
    for key, node in graph.items():
        check = getattr(NODE_CLASS_MAPPINGS.get(node["class_type"]), "VALIDATE_INPUTS", None)
        for name in inspect.getfullargspec(check).args if check else ():
            value = node["inputs"].get(name)
            if value is not None and not isinstance(value, list):
                answer = check(**{name: value})
                found |= {} if answer is True else {(key, name): answer}
    return found


def test_a_good_graph_has_none(host, reference):
    assert problems(graphs.example()) == {}


WRONG = [
    ({"width": 100}, ("3", "width"), "the nearest are 96 and 128"),
    ({"height": 100}, ("3", "height"), "the nearest are 96 and 128"),
    ({"intermediate_timesteps": 1.5708}, ("4", "intermediate_timesteps"), "the angles must decrease"),
    ({"instruction": "custom", "custom_instruction": " "}, ("2", "custom_instruction"), "custom"),
]


@pytest.mark.parametrize("given,where,text", WRONG, ids=lambda value: str(value)[:30])
def test_one_message_on_the_wrong_input(host, reference, given, where, text):
    graph = graphs.example()
    graph["2"]["inputs"].setdefault("custom_instruction", "")
    for name, value in given.items():
        next(node for node in graph.values() if name in node["inputs"])["inputs"][name] = value
    (found,) = problems(graph).items()
    assert found[0] == where and text in found[1]


@pytest.mark.parametrize("given", [{"steps": 0}, {"width": 0}, {"denoise": 2.0}], ids=str)
def test_limits_are_left_to_comfyui(host, reference, given):
    assert problems(graphs.example(**given)) == {}


def test_two_wrong_inputs_are_told_one_after_the_other(host, reference):
    graph = graphs.example(width=100, height=100)
    assert list(problems(graph)) == [("3", "width")]
    graph["3"]["inputs"]["width"] = 96
    assert list(problems(graph)) == [("3", "height")]


def test_of_two_nodes_the_wrong_one(host, reference):
    graph = graphs.example()
    graph["33"] = graphs.node("SanaEmptyLatent", width=100, height=64, batch_size=1)
    assert list(problems(graph)) == [("33", "width")]


def saving(**given) -> dict:
    file = {"fps": 16.0, "format": "gif", "quality": 80, "filename_prefix": "video/x"}
    return {
        "1": graphs.node("EmptyImage", width=64, height=64, batch_size=4, color=0),
        "2": graphs.node("SanaSaveVideo", images=["1", 0], **{**file, **given}),
        "3": graphs.node("EmptyAudio", duration=1.0),
        "4": graphs.node("SanaSelectFrames", images=["1", 0], start=0, count=0, stride=1),
    }


def test_a_format_without_sound(host):
    (found,) = problems(saving(audio=["3", 0])).items()
    assert found[0] == ("2", "format") and "gif has no sound: choose mp4-h264" in found[1]
    assert problems(saving()) == {} == problems(saving(audio=["3", 0], format="mp4-h264"))


def test_a_prefix(host):
    (found,) = problems(saving(filename_prefix="../x")).items()
    assert found[0] == ("2", "filename_prefix") and "leads out" in found[1]


@pytest.mark.parametrize(
    "given,text",
    [({"width": 100}, "the nearest are 96 and 112"), ({"height": 479}, "464"), ({"timesteps": "1, 2"}, "timesteps")],
    ids=str,
)
def test_a_long_video_is_checked_before_anything_loads(host, given, text):
    values = {"width": 832, "height": 480, "timesteps": "1000, 500", "filename_prefix": "video/x", **given}
    (found,) = problems({"7": graphs.node("SanaLongVideoSave", **values)}).items()
    assert found[0] == ("7", *given) and text in found[1]


@pytest.mark.parametrize("start", [4, -5])
def test_a_selection_out_of_range(host, start):
    graph = saving()
    graph["4"]["inputs"]["start"] = start
    (found,) = problems(graph).items()
    assert found[0] == ("4", "start") and "there are 4 frames" in found[1]


def test_a_selection_of_a_video(host, video_references):
    graph = graphs.video()
    sampler = next(key for key, node in graph.items() if node["class_type"] == "SanaFlowSample")
    decoder = next(key for key, node in graph.items() if node["class_type"] == "VAEDecode")
    assert graph[decoder]["inputs"]["samples"][0] == sampler
    graph["20"] = graphs.node("SanaSelectFrames", images=[decoder, 0], start=9, count=0, stride=1)
    latent = next(node for node in graph.values() if node["class_type"] == "SanaEmptyVideoLatent")
    latent["inputs"]["frames"] = 8  # 5 with this VAE
    assert "there are 5 frames" in problems(graph)["20", "start"]


def test_a_vae_of_another_model(host, video_references):
    graph = graphs.video()
    graph["30"] = graphs.node("SanaLoadVAE", vae_name="tiny", weight_dtype="default")
    decoder = next(node for node in graph.values() if node["class_type"] == "VAEDecode")
    decoder["inputs"]["vae"] = ["30", 0]
    (found,) = problems(graph).items()
    assert found[0] == ("30", "vae_name")
    assert "this VAE is DC-AE, and the model whose latents it decodes has the Wan 2.1 VAE" in found[1]


def test_a_model_of_another_sampler(host, video_references, sana_reference):
    """It is said of the model's loader, and nothing then of the VAE, which fits the model that was meant."""
    graph = graphs.example()
    graph["30"] = graphs.node("SanaLoadPipeline", pipeline="tiny-video", weight_dtype="default")
    graph["4"]["inputs"]["model"] = ["30", 0]
    (found,) = problems(graph).items()
    assert found[0] == ("30", "pipeline")
    assert found[1] == (
        "this model is SANA-Video, and Sana SCM Sample is for SANA-Sprint: sample it with Sana Flow Sample"
    )
    graph = graphs.sana("tiny")
    assert "Sana Flow Sample is for SANA and SANA-Video: sample it with Sana SCM" in problems(graph)["1", "pipeline"]
    assert problems(graphs.sana()) == {} == problems(graphs.video())


def test_a_model_for_a_long_video(host, video_references, home):
    here = home / "models" / "diffusion_models" / "a video transformer"
    here.symlink_to(home / "models" / "diffusers" / "tiny-video" / "transformer", target_is_directory=True)
    try:
        _a_model_for_a_long_video(here.name)
    finally:
        here.unlink()


def _a_model_for_a_long_video(name: str):
    values = {"width": 64, "height": 64, "filename_prefix": "video/x"}
    loader = graphs.node("SanaLoadTransformer", model_name=name, weight_dtype="default")
    graph = {"1": loader, "7": graphs.node("SanaLongVideoSave", model=["1", 0], **values)}
    assert "choose long as variant in Sana Load Transformer" in problems(graph)["1", "model_name"]
    loader["inputs"]["variant"] = "long"
    assert problems(graph) == {}


def test_a_sampler_that_was_left_aside_is_not_checked(host, video_references):
    graph = graphs.example()
    led = {"positive": ["2", 0], "latent_image": ["3", 0], "seed": 0}
    graph["40"] = graphs.node("SanaFlowSample", model=["1", 0], negative=["2", 0], **led)
    graph["41"] = graphs.node("VAEDecode", samples=["40", 0], vae=["1", 2])
    assert problems(graph) == {}
    graph["42"] = graphs.node("PreviewImage", images=["41", 0])
    assert ("1", "pipeline") in problems(graph)


def test_a_graph_that_was_checked_is_forgotten(host):
    """What the next check without a graph says is of its own input."""
    graph = graphs.video()
    graph["6"]["inputs"]["fps"] = 0.0
    with pytest.raises(executor.BadWorkflow, match="fps"):
        executor.check(graph, NODE_CLASS_MAPPINGS)
    assert before_run.graph() == {}
    assert "leads out" in NODE_CLASS_MAPPINGS["SanaSaveVideo"].VALIDATE_INPUTS(filename_prefix="../x")


def test_hostile_graphs_are_only_refused(host):
    """A graph of a request may be anything: the checks say nothing of it and do not fail."""
    loop = {"1": graphs.node("SanaSelectFrames", images=["1", 0], start=0, count=0, stride=1)}
    for graph in ([], {"1": None}, {"1": {"class_type": "SanaSelectFrames"}}, loop):
        before_run.remember(graph)
        assert inspect.getfullargspec(NODE_CLASS_MAPPINGS["SanaSelectFrames"].VALIDATE_INPUTS).args == []
    wrong = {"1": graphs.node("SanaEmptyLatent", width="x", height=[], batch_size=None)}
    assert problems(wrong) == {}
