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


def picture(nodes: dict, name: str) -> dict:
    """The example with an encoded picture of the input folder in place of the empty latent."""
    nodes["3"] = node("VAEEncode", pixels=["30", 0], vae=["1", 2])
    nodes["30"] = node("LoadImage", image=name)
    return nodes


def image_to_image(name: str, strength: float = 0.6, start: str = "continuous", **inputs) -> dict:
    """A picture noised by SanaImg2ImgLatent and drawn by SanaSCMSample without noise of its own."""
    nodes = picture(example(**inputs), name)
    ours = nodes["4"]["inputs"]
    chosen = {key: ours[key] for key in ("seed", "steps", "max_timesteps", "intermediate_timesteps")}
    nodes["31"] = node("SanaImg2ImgLatent", samples=["3", 0], strength=strength, start=start, **chosen)
    ours.update(latent_image=["31", 0], sigmas=["31", 1], add_noise="disable")
    return nodes


def inpaint(name: str, **inputs) -> dict:
    """What the picture's alpha leaves open is drawn, and laid over the picture."""
    nodes = picture(example(**inputs), name)
    nodes["32"] = node("SetLatentNoiseMask", samples=["3", 0], mask=["30", 1])
    nodes["4"]["inputs"]["latent_image"] = ["32", 0]
    place = {"x": 0, "y": 0, "resize_source": False}
    nodes["33"] = node("ImageCompositeMasked", destination=["30", 0], source=["5", 0], mask=["30", 1], **place)
    nodes["6"]["inputs"]["images"] = ["33", 0]
    return nodes


def sana(pipeline: str = "tiny-sana", negative: str = "a green square", **sampling) -> dict:
    """The example with SanaFlowSample and a negative prompt, for SANA that is not Sprint."""
    nodes = example(pipeline)
    encode = nodes["2"]["inputs"]
    nodes["7"] = node("SanaEncodePrompt", **{**encode, "text": negative, "instruction": "none"})
    asked = {"seed": 0, "steps": 4, "cfg": 4.5, "shift": 0.0, "solver": "dpm_solver++", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["7", 0], "latent_image": ["3", 0]}
    nodes["4"] = node("SanaFlowSample", **links, **{**asked, "add_noise": "enable", **sampling})
    return nodes


def with_controlnet(nodes: dict, name: str, net: str = "tiny-control", **given) -> dict:
    """A SANA graph led by a picture of the input folder."""
    asked = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **given}
    nodes["40"] = node("LoadImage", image=name)
    nodes["41"] = node("SanaLoadControlNet", control_net_name=net, weight_dtype="default")
    links = {"control_net": ["41", 0], "image": ["40", 0], "vae": ["1", 2]}
    sampler = nodes["4"]["inputs"]
    led = {"positive": sampler["positive"], "negative": sampler.get("negative", sampler["positive"])}
    nodes["42"] = node("ControlNetApplyAdvanced", **led, **links, **asked)
    sampler["positive"] = ["42", 0]
    if "negative" in sampler:
        sampler["negative"] = ["42", 1]
    return nodes


def with_lora(nodes: dict, *loras: tuple[str, float]) -> dict:
    """A graph whose MODEL goes through SanaLoadLora once for each name and strength."""
    link = nodes["4"]["inputs"]["model"]
    for number, (name, strength) in enumerate(loras):
        nodes[f"5{number}"] = node("SanaLoadLora", model=link, lora_name=name, strength=strength)
        link = [f"5{number}", 0]
    nodes["4"]["inputs"]["model"] = link
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
