"""Templates of videos on the demo weights of SANA-Video."""

from __future__ import annotations

from .images import DEMO as IMAGE_DEMO
from .source import IMAGE, MODEL, NOTE, PROMPT, RESULT, SAMPLE, Group, Template, node

DEMO = "sana-video-demo"
SMALL = {"width": 128, "height": 128, "frames": 17}
PUBLISHED = (
    "**Your own prompts** need the published weights: **sana-nodes get sana-video-480p**, then choose it in the "
    "loader, and "
    "832 × 480, 81 frames, 50 steps, cfg 6 and 16 frames per second. The template *SANA-Video faster with EasyCache* "
    "offers them as downloads."
)
DEMO_NOTE = "It opens on the demo weights, which know prompts such as *a red ring moving right on a blue background*."


def load(title: str = "Load SANA-Video") -> dict:
    return node("SanaLoadPipeline", title, pipeline=DEMO)


def prompt(text: str, source: str = "1", title: str = "Prompt") -> dict:
    return node("SanaEncodeVideoPrompt", title, clip=(source, 1), prompt=text)


def sample(prompt_id: str, latent, source: str = "1", title: str = "Sample", **given) -> dict:
    fast = {"steps": 12, "cfg": 2.0, **given}
    led = {"positive": (prompt_id, 0), "negative": (prompt_id, 1), "latent_image": latent}
    return node("SanaFlowSample", title, model=(source, 0), **led, **fast)


def decode(samples, source: str = "1", title: str = "Decode") -> dict:
    return node("VAEDecode", title, samples=samples, vae=(source, 2))


def save(images, title: str = "Save Video", fps: float = 8.0) -> dict:
    return node("SanaSaveVideo", title, images=images, fps=fps)


def templates() -> dict[str, Template]:
    return {
        "sana_video_text_to_video": text_to_video(),
        "sana_video_image_to_video": image_to_video(),
        "sana_video_continue": continue_video(),
    }


def text_to_video() -> Template:
    return Template(
        "SANA-Video text to video",
        {
            "1": load(),
            "2": prompt("a red ring moving right on a blue background"),
            "3": node("SanaEmptyVideoLatent", "Size And Length", vae=("1", 2), **SMALL),
            "4": sample("2", ("3", 0), seed=1),
            "5": decode(("4", 0)),
            "6": save(("5", 0)),
        },
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  Prompt", PROMPT, 0, {1: ("2",)}),
            Group("3  Size and length", IMAGE, 1, {1: ("3",)}),
            Group("4  Sample", SAMPLE, 0, {2: ("4",)}),
            Group("5  Result", RESULT, 0, {3: ("5", "6")}),
        ),
        f"# Text to video\n\nPress **Run**. {DEMO_NOTE}\n\n{PUBLISHED}",
    )


def image_to_video() -> Template:
    return Template(
        "SANA-Video image to video",
        {
            "1": node("SanaLoadPipeline", "Load SANA-Sprint", pipeline=IMAGE_DEMO),
            "2": node(
                "SanaEncodePrompt",
                "First Frame's Prompt",
                clip=("1", 1),
                text="a yellow triangle at the bottom of a purple background",
            ),
            "3": node("SanaEmptyLatent", "First Frame's Size", width=256, height=256),
            "4": node(
                "SanaSCMSample", "Sample First Frame", model=("1", 0), positive=("2", 0), latent_image=("3", 0), seed=1
            ),
            "5": decode(("4", 0), title="Decode First Frame"),
            "6": load(),
            "7": prompt("a yellow triangle moving up on a purple background", "6"),
            "8": node("SanaImageToVideoLatent", "Size, Length And First Frame", vae=("6", 2), image=("5", 0), **SMALL),
            "9": sample("7", ("8", 0), "6", seed=2),
            "10": decode(("9", 0), "6"),
            "11": save(("10", 0)),
        },
        (
            Group("1  First frame", IMAGE, 0, {0: ("1", "3"), 1: ("2",), 2: ("4",), 3: ("5",)}),
            Group("About this workflow", RESULT, 0, {4: (NOTE,)}),
            Group("2  Video model", MODEL, 1, {0: ("6",)}),
            Group("3  Prompt: what moves", PROMPT, 1, {1: ("7",)}),
            Group("4  Sample", SAMPLE, 1, {2: ("30", "8"), 3: ("9", "10")}),
            Group("5  Result", RESULT, 1, {4: ("11",)}),
        ),
        "# Image to video\n\n**Your own image**: click *Your Image*, open it (Alt+C) and switch it on (Ctrl+B) and "
        "connect it to *Size, Length And First "
        f"Frame*; it is cropped to the video's size.\n\n{PUBLISHED}",
        {"30": node("LoadImage", "Your Image")},
    )


def continue_video() -> Template:
    first = {
        "1": load(),
        "2": prompt("a green circle moving right on a white background", title="First Prompt"),
        "3": node("SanaEmptyVideoLatent", "Size And Length", vae=("1", 2), **SMALL),
        "4": sample("2", ("3", 0), title="Sample First Clip", seed=3),
        "5": decode(("4", 0), title="Decode First Clip"),
        "6": node("SanaSelectFrames", "Last Frame", images=("5", 0), start=-1),
    }
    second = {
        "7": prompt("a green circle moving left on a white background", title="Second Prompt"),
        "8": node("SanaImageToVideoLatent", "Continue From Last Frame", vae=("1", 2), image=("6", 0), **SMALL),
        "9": sample("7", ("8", 0), title="Sample Second Clip", seed=4),
        "10": decode(("9", 0), title="Decode Second Clip"),
        "11": node("SanaSelectFrames", "Drop Repeated Frame", images=("10", 0), start=1),
        "12": node("ImageBatch", "Join Clips", image1=("5", 0), image2=("11", 0)),
        "13": save(("12", 0)),
    }
    return Template(
        "SANA-Video continue a video",
        {**first, **second},
        (
            Group("1  Model", MODEL, 0, {0: ("1", "3")}),
            Group("2  First clip", PROMPT, 0, {1: ("2",), 2: ("4",), 3: ("5", "6")}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group(
                "3  Second clip",
                SAMPLE,
                1,
                {1: ("7",), 2: ("8",), 3: ("9",), 4: ("10", "11")},
            ),
            Group("4  Result", RESULT, 0, {4: ("12", "13")}),
        ),
        "# Continue a video\n\nThe last frame of the first clip is the first frame of the second; *Drop Repeated "
        "Frame* "
        f"leaves it out once. Repeat the lower row for more clips.\n\n{PUBLISHED}",
    )
