"""Templates of LongSANA, whose published weights they need."""

from __future__ import annotations

from .source import MODEL, NOTE, PROMPT, RESULT, SAMPLE, Group, Template, node

PIPELINE = "longsana-480p"
WEIGHTS = (
    "Get the weights with `sana-nodes get longsana-480p`. The video is sampled, decoded and saved block by block, so "
    "that its length takes no memory."
)
STORY = (
    "A sailing boat leaves a small harbour in the morning, soft light",
    "The sailing boat on the open sea, dolphins jump beside it",
    "Dark clouds gather over the sailing boat and the waves rise",
    "The sailing boat in a storm, rain and lightning",
    "The sun comes out and the sailing boat reaches a green island",
)
SECONDS = 12
"""Of the story for each of its prompts."""


def templates() -> dict[str, Template]:
    return {"longsana_minute": minute(), "longsana_story": story(), "longsana_continue": continued()}


def load() -> dict:
    return node("SanaLoadPipeline", "Load LongSANA", pipeline=PIPELINE)


def prompt(text: str, title: str = "Prompt") -> dict:
    return node("SanaEncodeVideoPrompt", title, clip=("1", 1), prompt=text, motion_score=10, instruction="long")


def save(prompts: str, title: str, **given) -> dict:
    led = {"model": ("1", 0), "positive": (prompts, 0), "vae": ("1", 2), "filename_prefix": "video/LongSANA"}
    return node("SanaLongVideoSave", title, **led, **given)


def minute() -> Template:
    return Template(
        "LongSANA a minute from one prompt",
        {
            "1": load(),
            "2": prompt("A sailing boat on a calm sea at sunset, the camera moves slowly around it"),
            "3": save("2", "Save While It Is Made"),
        },
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  Prompt", PROMPT, 0, {1: ("2",)}),
            Group("3  Sample, decode and save", SAMPLE, 0, {2: ("3",)}),
        ),
        f"# A minute from one prompt\n\n{WEIGHTS} Cancel the run at any time: the blocks so far stay as a file.",
        demo=False,
    )


def story() -> Template:
    """A prompt (2, 4, …) and its time (3, 5, …) for each part."""
    graph = {"1": load()}
    for number, text in enumerate(STORY):
        words, time = str(2 + 2 * number), str(3 + 2 * number)
        graph[words] = prompt(text, f"Prompt {number + 1}")
        start = SECONDS * number
        earlier = {"previous": (str(1 + 2 * number), 0)} if number else {}
        graph[time] = node(
            "SanaPromptSchedule", f"From Second {start}", conditioning=(words, 0), start=float(start), **earlier
        )
    last = 2 + 2 * len(STORY)
    graph[str(last)] = save(str(last - 1), "Save While It Is Made")
    prompts = tuple(str(2 + 2 * number) for number in range(len(STORY)))
    times = tuple(str(3 + 2 * number) for number in range(len(STORY)))
    return Template(
        "LongSANA a story of five prompts",
        graph,
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  Prompts", PROMPT, 0, {1: prompts}),
            Group("3  When each begins", PROMPT, 0, {2: times}),
            Group("4  Sample, decode and save", SAMPLE, 0, {3: (str(last),)}),
        ),
        f"# A story of five prompts\n\n{WEIGHTS} Each *Sana Prompt Schedule* adds a prompt that begins at a time.",
        demo=False,
    )


def continued() -> Template:
    return Template(
        "LongSANA continue a clip",
        {
            "1": load(),
            "2": prompt("A red balloon rises over a green field", "First Prompt"),
            "3": save("2", "Save First Clip", frames=321),
            "4": node("SanaSaveVideoState", "Keep For Another Day", state=("3", 1), filename_prefix="states/LongSANA"),
            "5": prompt("The red balloon floats above the clouds", "Second Prompt"),
            "6": save("5", "Save What Follows", frames=320, state=("4", 0)),
        },
        (
            Group("1  Model", MODEL, 0, {0: ("1",)}),
            Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
            Group("2  First clip", SAMPLE, 0, {1: ("2",), 2: ("3",)}),
            Group("3  State", RESULT, 1, {2: ("4",)}),
            Group("4  What follows", SAMPLE, 0, {3: ("5",), 4: ("6",)}),
        ),
        f"# Continue a clip\n\n{WEIGHTS} The second file follows the first without a seam. To continue on another day, "
        "replace the first clip by *Sana Load Video State*.",
        demo=False,
    )
