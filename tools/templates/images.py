"""Templates of images on the demo weights of SANA-Sprint."""

from __future__ import annotations

import json
import math
from typing import Any

from .source import IMAGE, MODEL, NOTE, PROMPT, RESULT, SAMPLE, Group, Template, node

DEMO = "sana-sprint-demo"
PUBLISHED = (
    "**Your own prompts** need the published weights: **sana-nodes get sana-sprint-0.6b**, then choose it in the "
    "loader and "
    "set 1024 × 1024. The template *SANA-Sprint 1.6B text to image* offers them as downloads."
)
DEMO_NOTE = (
    "It opens on the demo weights, which know prompts such as *a green square in the top left of a white background*."
)


def load(pipeline: str = DEMO) -> dict:
    return node("SanaLoadPipeline", "Load SANA-Sprint", pipeline=pipeline)


def prompt(text: str, title: str = "Prompt") -> dict:
    return node("SanaEncodePrompt", title, clip=("1", 1), text=text)


def sample(positive, latent, title: str | None = "Sample", **given) -> dict:
    return node("SanaSCMSample", title, **{"model": ("1", 0), "positive": positive, "latent_image": latent, **given})


def decode(samples, title: str | None = "Decode") -> dict:
    return node("VAEDecode", title, samples=samples, vae=("1", 2))


def size(title: str = "Size", batch: int = 1) -> dict:
    return node("SanaEmptyLatent", title, width=256, height=256, batch_size=batch)


def save(images, prefix: str = "Sana", title: str = "Save Image") -> dict:
    return node("SaveImage", title, images=images, filename_prefix=prefix)


def templates() -> dict[str, Template]:
    return {
        "sana_sprint_text_to_image": text_to_image(),
        "sana_sprint_image_to_image": image_to_image(),
        "sana_sprint_inpainting": inpainting(),
        "sana_sprint_sketch": from_sketch(),
        "sana_sprint_lora": with_lora(),
        "sana_sprint_several_prompts": several_prompts(),
    }


def text_to_image() -> Template:
    return Template(
        "SANA-Sprint text to image",
        {
            "1": node("SanaLoadPipeline", pipeline=DEMO),
            "2": node("SanaEncodePrompt", clip=("1", 1), text="a red ring on the left of a blue background"),
            "3": node("SanaEmptyLatent", width=256, height=256),
            "4": sample(("2", 0), ("3", 0), None),
            "5": decode(("4", 0), None),
            "6": save(("5", 0)),
        },
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  Prompt", PROMPT, 0, {1: ("2",)}),
            Group("3  Size", IMAGE, 1, {1: ("3",)}),
            Group("4  Sample in two steps", SAMPLE, 0, {2: ("4",)}),
            Group("5  Result", RESULT, 0, {3: ("5", "6")}),
        ),
        f"# Text to image\n\nPress **Run**. {DEMO_NOTE}\n\n{PUBLISHED}\n\n1 to 4 steps; 2 is best. *guidance_scale* "
        f"in "
        "*Sana Encode Prompt* says how closely to follow the prompt.",
    )


def image_to_image() -> Template:
    return Template(
        "SANA-Sprint image to image",
        {
            "1": load(),
            "2": prompt("a red ring on the left of a blue background", "First Image's Prompt"),
            "3": size(),
            "4": sample(("2", 0), ("3", 0), "Sample First Image"),
            "5": decode(("4", 0), "Decode First Image"),
            "6": node("PreviewImage", "First Image", images=("5", 0)),
            "7": node("VAEEncode", "Encode Image", pixels=("12", 0), vae=("1", 2)),
            "8": prompt("a yellow ring on the left of a blue background", "New Prompt"),
            "9": sample(("8", 0), ("7", 0), "Sample From Image", seed=1, denoise=0.75),
            "10": decode(("9", 0)),
            "11": save(("10", 0), "Sana/changed"),
            "12": node("SanaCropToSize", "Crop To Size", images=("5", 0), width=256, height=256),
        },
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  Image to begin with", IMAGE, 0, {1: ("2",), 2: ("3",), 3: ("4",), 4: ("5", "6")}),
            Group("3  New prompt", PROMPT, 1, {1: ("8",)}),
            Group("4  Change it", SAMPLE, 1, {2: ("30", "12", "7"), 3: ("9",)}),
            Group("5  Result", RESULT, 1, {4: ("10", "11")}),
        ),
        f"# Image to image\n\n*denoise* in *Sample From Image* says how much changes: 0 nothing, 1 everything.\n\n"
        "**Your own image**: click *Your Image*, open it (Alt+C) and switch it on (Ctrl+B) and connect its IMAGE to "
        f"*Crop To Size*.\n\n{PUBLISHED} 0.4 to 0.7 is usual there; the demo weights change an image late.",
        {"30": node("LoadImage", "Your Image")},
    )


def inpainting() -> Template:
    return Template(
        "SANA-Sprint inpainting",
        {
            "1": load(),
            "2": prompt("a green square in the top left of a white background", "First Image's Prompt"),
            "3": size(),
            "4": sample(("2", 0), ("3", 0), "Sample First Image"),
            "5": decode(("4", 0), "Decode First Image"),
            "6": node("VAEEncode", "Encode Image", pixels=("5", 0), vae=("1", 2)),
            "7": node("SolidMask", "Keep Everything", value=0.0, width=256, height=256),
            "8": node("SolidMask", "Open This Much", value=1.0, width=128, height=128),
            "9": node("MaskComposite", "Mask", destination=("7", 0), source=("8", 0), x=128, y=128),
            "10": node("SetLatentNoiseMask", samples=("6", 0), mask=("9", 0)),
            "11": prompt("a red circle in the bottom right of a white background", "What To Put There"),
            "12": sample(("11", 0), ("10", 0), "Sample Inside The Mask", seed=1),
            "13": decode(("12", 0)),
            "14": node("ImageCompositeMasked", "Keep The Rest", destination=("5", 0), source=("13", 0), mask=("9", 0)),
            "15": save(("14", 0), "Sana/inpainted"),
        },
        (
            Group("1  Model and size", MODEL, 0, {0: ("1", "3")}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  Image", IMAGE, 0, {1: ("2",), 2: ("4",), 3: ("5",)}),
            Group("3  Mask: white is generated again", IMAGE, 0, {4: ("7", "8"), 5: ("9",)}),
            Group("4  What to put there", PROMPT, 1, {1: ("11",)}),
            Group("5  Sample inside the mask", SAMPLE, 1, {2: ("30", "6", "10"), 3: ("12",)}),
            Group("6  Result", RESULT, 1, {4: ("13", "14"), 5: ("15",)}),
        ),
        "# Inpainting\n\nOnly what the mask opens changes: the rest of the latent is kept, and *Keep The Rest* puts "
        "the "
        "old pixels back.\n\n**Your own image**: click *Your Image*, open it (Alt+C) and switch it on (Ctrl+B), "
        "choose a file, open it in the mask "
        "editor (right-click) and mark what to replace. Connect its IMAGE to *Encode Image* and *Keep The Rest*, and "
        "its MASK to the two "
        f"places where *Mask* goes.\n\n{PUBLISHED}",
        {"30": node("LoadImage", "Your Image")},
    )


def circle(x: float, y: float, radius: float, points: int = 28) -> str:
    """A sketch of one circle, in parts of the image, with lines as wide as the demo ControlNet was trained on."""
    angles = [2 * math.pi * i / points for i in range(points + 1)]
    along = [round(10_000 * each) for a in angles for each in (x + radius * math.cos(a), y + radius * math.sin(a))]
    return json.dumps({"v": 1, "paper": "#000000", "strokes": [{"c": "#ffffff", "w": 240, "p": along}]})


def from_sketch() -> Template:
    given: dict[str, Any] = {
        "positive": ("5", 0),
        "negative": ("5", 0),
        "control_net": ("2", 0),
        "image": ("3", 0),
        "vae": ("1", 2),
    }
    return Template(
        "SANA-Sprint ControlNet from a sketch",
        {
            "1": load(),
            "2": node("SanaLoadControlNet", "Load ControlNet", control_net_name="sana-sprint-demo-sketch"),
            "3": node("SanaSketch", "Sketch", sketch=circle(0.68, 0.64, 0.2), width=256, height=256),
            "4": size(),
            "5": prompt("a yellow circle in the centre of a purple background"),
            "6": node("ControlNetApplyAdvanced", **given),
            "7": sample(("6", 0), ("4", 0)),
            "8": decode(("7", 0)),
            "9": save(("8", 0), "Sana/sketch"),
        },
        (
            Group("1  Model and size", MODEL, 0, {0: ("1", "4")}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  Sketch", IMAGE, 0, {1: ("3",)}),
            Group("3  Prompt", PROMPT, 1, {1: ("5",)}),
            Group("4  Sample where the sketch is", SAMPLE, 0, {2: ("2", "6"), 3: ("7",)}),
            Group("5  Result", RESULT, 1, {3: ("8", "9")}),
        ),
        "# ControlNet from a sketch\n\nClear the canvas (✕) and make an outline with the mouse. Choose **Run (On "
        "Change)** in the menu of Run: each stroke renders.\n\nThe demo ControlNet knows white outlines of the shapes "
        "that the demo weights know; the prompt says what the outline holds.\n\nWith published weights: a ControlNet "
        "of the same width as the model, and 1024 × 1024.",
    )


def with_lora() -> Template:
    return Template(
        "SANA-Sprint with a LoRA",
        {
            "1": load(),
            "2": node("SanaLoadLora", "LoRA", model=("1", 0), lora_name="sana-sprint-demo-large.safetensors"),
            "3": prompt("a red ring in the centre of a blue background"),
            "4": size(),
            "5": sample(("3", 0), ("4", 0), model=("2", 0)),
            "6": decode(("5", 0)),
            "7": save(("6", 0), "Sana/lora"),
        },
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  LoRA and prompt", PROMPT, 0, {1: ("2", "3")}),
            Group("3  Size", IMAGE, 1, {1: ("4",)}),
            Group("4  Sample", SAMPLE, 0, {2: ("5",)}),
            Group("5  Result", RESULT, 0, {3: ("6", "7")}),
        ),
        "# LoRA\n\nThe demo LoRA makes every shape large; *strength* 0 leaves it out. Chain several: MODEL goes from "
        "one to the next.\n\nYour own go into *models/loras*: files of diffusers, PEFT, kohya, LyCORIS and OneTrainer, "
        f"made for this size of SANA.\n\n{PUBLISHED}",
    )


PROMPTS = (
    "a red ring in the centre of a white background",
    "a blue diamond in the centre of a yellow background",
    "a green cross in the centre of a black background",
)


def several_prompts() -> Template:
    graph = {"1": load(), "2": size()}
    for i, text in enumerate(PROMPTS, 1):
        graph[f"1{i}"] = prompt(text, f"Prompt {i}")
        graph[f"2{i}"] = sample((f"1{i}", 0), ("2", 0), f"Sample {i}")
        graph[f"3{i}"] = decode((f"2{i}", 0), f"Decode {i}")
    graph["40"] = node("ImageBatch", "1 And 2", image1=("31", 0), image2=("32", 0))
    graph["41"] = node("ImageBatch", "All", image1=("40", 0), image2=("33", 0))
    graph["50"] = save(("41", 0), "Sana/several", "Save Images")
    return Template(
        "SANA-Sprint several prompts at once",
        graph,
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("2  Size", IMAGE, 1, {0: ("2", NOTE)}),
            *(Group(f"3  Prompt {i}", PROMPT, 0, {i: (f"1{i}",)}) for i in (1, 2, 3)),
            *(Group(f"4  Sample {i}", SAMPLE, 1, {i: (f"2{i}", f"3{i}")}) for i in (1, 2, 3)),
            Group("5  All results", RESULT, 1, {4: ("40", "41", "50")}),
        ),
        "# Several prompts at once\n\nOne model and one size for three prompts; the results are one list of "
        "images.\n\n"
        "For variations of one prompt write choices in braces, *a {red|green|blue} ring*, and set the number beside "
        f"Run.\n\n{PUBLISHED}",
    )
