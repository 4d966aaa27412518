"""Templates of LongSANA: a minute from one prompt, a story, and a clip that is continued."""

from __future__ import annotations

from .published import WAN, file_list, links, loaders, original
from .source import MODEL, NOTE, PROMPT, RESULT, SAMPLE, Group, Template, node

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


def templates() -> dict[str, Template]:
    return {"longsana_minute": minute(), "longsana_story": story(), "longsana_continue": continued()}


def prompt(text: str, title: str) -> dict:
    settings = {"negative_prompt": "", "motion_score": 10, "instruction": "long"}
    return node("SanaEncodeVideoPrompt", title, clip=("2", 0), prompt=text, **settings)


def save(positive: str, title: str, **given) -> dict:
    led = {"model": ("1", 0), "positive": (positive, 0), "vae": ("3", 0)}
    return node("SanaLongVideoSave", title, **led, filename_prefix="video/LongSANA", **given)


def published(title: str, graph: dict, groups: tuple[Group, ...], note: str) -> Template:
    base = (Group("1  Model", MODEL, 0, {0: ("1", "2", "3")}), Group("About this workflow", RESULT, 1, {0: (NOTE,)}))
    models = links(LONG, WAN)
    text = f"{note} {BLOCKS}{file_list(*models.values())}"
    return Template(title, {**loaders(LONG, WAN), **graph}, (*base, *groups), text, models=models, demo=False)


def minute() -> Template:
    words = "A sailing boat on a calm sea at sunset, the camera moves slowly around it"
    return published(
        "LongSANA a minute from one prompt",
        {"4": prompt(words, "Prompt"), "5": save("4", "Save While It Is Made")},
        (Group("2  Prompt", PROMPT, 0, {1: ("4",)}), Group("3  Result", RESULT, 0, {2: ("5",)})),
        "# A minute from one prompt\n\nCancel the run at any time: the blocks so far stay as a file.",
    )


def story() -> Template:
    graph = {}
    for i, words in enumerate(STORY):
        before = {"previous": (str(20 + i - 1), 0)} if i else {}
        graph[str(10 + i)] = prompt(words, f"Prompt {i + 1}")
        second = SECONDS * i
        graph[str(20 + i)] = node(
            "SanaPromptSchedule", f"From Second {second:.0f}", conditioning=(str(10 + i), 0), start=second, **before
        )
    graph["30"] = save("24", "Save While It Is Made")
    return published(
        "LongSANA a story of five prompts",
        graph,
        (
            Group("2  Prompts 1 to 3", PROMPT, 0, {i + 1: (str(10 + i), str(20 + i)) for i in range(3)}),
            Group("2  Prompts 4 and 5", PROMPT, 1, {i - 2: (str(10 + i), str(20 + i)) for i in (3, 4)}),
            Group("3  Result", RESULT, 0, {4: ("30",)}),
        ),
        "# A story of five prompts\n\n*From Second 12* and those like it add a prompt that begins at that time.",
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
