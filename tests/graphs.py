"""API-format graphs for the tests."""

from __future__ import annotations

import json

import tiny

EXAMPLE = tiny.REPOSITORY / "example_workflows" / "api" / "sana_sprint_text_to_image.json"


def example(pipeline: str = "tiny", width: int = 64, height: int = 64, **inputs) -> dict:
    """The shipped example; ``inputs`` go to whichever node has them."""
    nodes = json.loads(EXAMPLE.read_text())
    nodes["1"]["inputs"]["pipeline"] = pipeline
    nodes["3"]["inputs"].update(width=width, height=height)
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
