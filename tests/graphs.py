"""API-format graphs for the tests."""

from __future__ import annotations

import json

import tiny

EXAMPLES = tiny.REPOSITORY / "example_workflows" / "api"
EXAMPLE = EXAMPLES / "sana_sprint_text_to_image.json"
VIDEO_EXAMPLE = EXAMPLES / "sana_video_text_to_video.json"


def example(pipeline: str = "tiny", width: int = 64, height: int = 64, **inputs) -> dict:
    """The shipped example; ``inputs`` go to whichever node has them."""
    nodes = json.loads(EXAMPLE.read_text())
    nodes["1"]["inputs"]["pipeline"] = pipeline
    nodes["3"]["inputs"].update(width=width, height=height)
    return _with(nodes, inputs)


def _with(nodes: dict, inputs: dict) -> dict:
    """Each input given to the one node that has it."""
    for key, value in inputs.items():
        owners = [node for node in nodes.values() if key in node["inputs"]]
        assert len(owners) == 1, f"{key} belongs to {len(owners)} nodes"
        owners[0]["inputs"][key] = value
    return nodes


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def with_ksampler(steps: int = 1, **inputs) -> dict:
    """The example with core KSampler (lcm) and core CLIPTextEncode in place of our two."""
    nodes = example(**inputs)
    settings = {"steps": steps, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1.0}
    nodes["2"] = node("CLIPTextEncode", clip=["1", 1], text=nodes["2"]["inputs"]["text"])
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    nodes["4"] = node("KSampler", seed=nodes["4"]["inputs"]["seed"], **links, **settings)
    return nodes


def with_custom_advanced(sampler: dict, **inputs) -> dict:
    """The example with SamplerCustomAdvanced; ``sampler``: the node that gives its SAMPLER."""
    nodes = example(**inputs)
    ours = nodes["4"]["inputs"]
    schedule = {key: ours[key] for key in ("steps", "max_timesteps", "intermediate_timesteps", "denoise")}
    nodes["10"] = node("RandomNoise", noise_seed=ours["seed"])
    nodes["11"] = node("BasicGuider", model=["1", 0], conditioning=["2", 0])
    nodes["12"] = sampler
    nodes["13"] = node("SanaSCMSigmas", **schedule)
    links = {"noise": ["10", 0], "guider": ["11", 0], "sampler": ["12", 0], "sigmas": ["13", 0]}
    nodes["4"] = node("SamplerCustomAdvanced", latent_image=["3", 0], **links)
    return nodes


def video(pipeline: str = "tiny-video", **inputs) -> dict:
    """The shipped text-to-video example at 64 x 64, 5 frames and 3 steps; ``inputs`` go to whichever node has them."""
    nodes = json.loads(VIDEO_EXAMPLE.read_text())
    small = {"pipeline": pipeline, "width": 64, "height": 64, "frames": 5, "steps": 3, "cfg": 3.0}
    return _with(nodes, {**small, **inputs})


def from_picture(nodes: dict, name: str) -> dict:
    """A video graph that begins with a picture of the input folder."""
    size = nodes["3"]["inputs"]
    nodes["10"] = node("LoadImage", image=name)
    nodes["3"] = node("SanaImageToVideoLatent", image=["10", 0], **size)
    return nodes


def video_with_custom_advanced(nodes: dict) -> dict:
    """A video graph with SamplerCustomAdvanced in place of SanaFlowSample."""
    nodes = json.loads(json.dumps(nodes))
    ours = nodes["4"]["inputs"]
    schedule = {key: ours[key] for key in ("steps", "shift", "solver", "denoise")}
    led = {key: ours[key] for key in ("model", "positive", "negative", "cfg")}
    nodes["11"] = node("RandomNoise", noise_seed=ours["seed"])
    nodes["12"] = node("CFGGuider", **led)
    nodes["13"] = node("SanaFlowSampler", solver=ours["solver"])
    nodes["14"] = node("SanaFlowSigmas", model=ours["model"], **schedule)
    links = {"noise": ["11", 0], "guider": ["12", 0], "sampler": ["13", 0], "sigmas": ["14", 0]}
    nodes["4"] = node("SamplerCustomAdvanced", latent_image=ours["latent_image"], **links)
    return nodes
