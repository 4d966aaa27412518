"""Templates of LongSANA: a minute from one prompt, stories, and a clip that is continued."""

from __future__ import annotations

from .published import WAN, file_list, links, loaders, original
from .source import MODEL, NOTE, PROMPT, RESULT, SAMPLE, Group, Template, node
from .videos import DEMO_NOTE

LONG = original("SANA-Video_2B_480p_LongLive", "SANA_Video_2B_480p_LongLive.pth")
BLOCKS = "It is sampled, decoded and saved block by block, so that its length takes no memory.\n\n"
STORY = (
    "A sailing boat leaves a small harbour in the morning, soft light",
    "The sailing boat on the open sea, dolphins jump beside it",
    "Dark clouds gather over the sailing boat and the waves rise",
    "The sailing boat in a storm, rain and lightning",
    "The sun comes out and the sailing boat reaches a green island",
)
SECONDS = 12.0
DEMO = "sana-video-long-demo"
DEMO_STORY = (
    "a red ring moving right on a blue background",
    "a yellow ring moving down on a blue background",
    "a yellow ring moving left on a blue background",
)
DEMO_SIZE = {"width": 128, "height": 128, "frames": 161, "fps": 8.0, "block_frames": 5}
DEMO_SECONDS = 20 / 3


def templates() -> dict[str, Template]:
    return {
        "longsana_short_story": short_story(),
        "longsana_minute": minute(),
        "longsana_story": story(),
        "longsana_continue": continued(),
    }


def prompt(text: str, title: str, clip=("2", 0), instruction: str = "long") -> dict:
    settings = {"negative_prompt": "", "motion_score": 10, "instruction": instruction}
    return node("SanaEncodeVideoPrompt", title, clip=clip, prompt=text, **settings)


def save(positive: str, title: str, vae=("3", 0), **given) -> dict:
    led = {"model": ("1", 0), "positive": (positive, 0), "vae": vae}
    return node("SanaLongVideoSave", title, **led, filename_prefix="video/LongSANA", **given)


APART = (Group("1  Model", MODEL, 0, {0: ("1", "2", "3")}), Group("About this workflow", RESULT, 1, {0: (NOTE,)}))
TOGETHER = (Group("1  Model", MODEL, 0, {0: ("1", "2", "3", NOTE)}, both=True),)
"""The model and the note, each in its row or in one group."""


def published(title: str, graph: dict, groups: tuple[Group, ...], note: str, base=APART) -> Template:
    models = links(LONG, WAN)
    text = f"{note} {BLOCKS}{file_list(*models.values())}"
    return Template(title, {**loaders(LONG, WAN), **graph}, (*base, *groups), text, models=models, demo=False)


def minute() -> Template:
    words = "A sailing boat on a calm sea at sunset, the camera moves slowly around it"
    return published(
        "LongSANA a minute from one prompt",
        {"4": prompt(words, "Prompt"), "5": save("4", "Save While It Is Made")},
        (Group("2  Prompt", PROMPT, 0, {1: ("4",)}), Group("3  Result", RESULT, 0, {2: ("5",)}, both=True)),
        "# A minute from one prompt\n\nCancel the run at any time: the blocks so far stay as a file.",
    )


def in_time(prompts: tuple[str, ...], seconds: float, fps: float = 16.0, **encoding) -> dict[str, dict]:
    """Prompts one after another, each for so long: nodes 10, 11 … and their places in time 20, 21 …"""
    graph = {}
    for i, words in enumerate(prompts):
        before = {"previous": (str(20 + i - 1), 0)} if i else {}
        start = round(seconds * i, 1)
        graph[str(10 + i)] = prompt(words, f"Prompt {i + 1}", **encoding)
        graph[str(20 + i)] = node(
            "SanaPromptSchedule",
            f"From Second {start:g}",
            conditioning=(str(10 + i), 0),
            start=start,
            fps=fps,
            **before,
        )
    return graph


def story() -> Template:
    return published(
        "LongSANA a story of five prompts",
        {**in_time(STORY, SECONDS), "30": save("24", "Save While It Is Made")},
        (
            Group("2  Prompts 1 to 3", PROMPT, 0, {i + 1: (str(10 + i), str(20 + i)) for i in range(3)}),
            Group("2  Prompts 4 and 5", PROMPT, 1, {i - 2: (str(10 + i), str(20 + i)) for i in (3, 4)}),
            Group("3  Result", RESULT, 0, {4: ("30",)}, both=True),
        ),
        "# A story of five prompts\n\n*From Second 12* and those like it add a prompt that begins at that time.",
        TOGETHER,
    )


def short_story() -> Template:
    graph = {
        "1": node("SanaLoadPipeline", "Load LongSANA", pipeline=DEMO),
        **in_time(DEMO_STORY, DEMO_SECONDS, DEMO_SIZE["fps"], clip=("1", 1), instruction="video"),
        "30": save("22", "Save While It Is Made", vae=("1", 2), seed=1, **DEMO_SIZE),
    }
    return Template(
        "LongSANA a short story",
        graph,
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("2  Prompts", PROMPT, 0, {i + 1: (str(10 + i), str(20 + i)) for i in range(3)}),
            Group("3  Result", RESULT, 0, {4: ("30",)}, both=True),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
        ),
        f"# A short story of three prompts\n\n{DEMO_NOTE} The shape goes to the side that its prompt says and waits "
        f"there for the next prompt.\n\n{BLOCKS}**Your own prompts** need the published weights: the template "
        "*LongSANA a story of five prompts* offers them as downloads.",
    )


def continued() -> Template:
    return published(
        "LongSANA continue a clip",
        {
            "4": prompt("A red balloon rises over a green field", "First Prompt"),
            "5": save("4", "Save First Clip", frames=321),
            "6": node("SanaSaveVideoState", "Keep For Another Day", state=("5", 1), filename_prefix="states/LongSANA"),
            "7": prompt("The red balloon floats above the clouds", "Second Prompt"),
            "8": save("7", "Save What Follows", frames=320, state=("6", 0)),
        },
        (
            Group("2  First clip", SAMPLE, 0, {1: ("4",), 2: ("5",)}),
            Group("3  Its end, kept", PROMPT, 1, {2: ("6",)}),
            Group("4  What follows", SAMPLE, 0, {3: ("7",), 4: ("8",)}),
        ),
        "# Continue a clip\n\nThe second file follows the first without a seam. To continue on another day, replace "
        "the first clip by Sana Load Video State.",
    )
