"""Ten mistakes in ComfyUI's editor, classic and Nodes 2.0: one message, on the input that is wrong, in plain words."""

from __future__ import annotations

import copy
import re

import browser
import pytest
from sana_nodes.tools.templates import templates
from sana_nodes.tools.templates.source import node

pytestmark = pytest.mark.skipif(browser.why_not() is not None, reason=str(browser.why_not()))

IMAGE, VIDEO = "sana_sprint_text_to_image", "sana_video_text_to_video"
SILENT = {"6": {"format": "gif", "audio": ["20", 0]}}
SOUND = {"inputs": {"duration": 1.0, "sample_rate": 44100, "channels": 2}, "class_type": "EmptyAudio"}
OTHER = node("SanaLoadPipeline", "Other Pipeline", pipeline="sana-sprint-demo")
SELECTED = node("SanaSelectFrames", images=("5", 0), start=100)

MISTAKES = {
    "a size that is no multiple": (IMAGE, {"3": {"width": 100}}, {}, ("3", "width"), "the nearest are 96 and 128"),
    "no steps": (IMAGE, {"4": {"steps": 0}}, {}, ("4", "steps"), "0"),
    "angles that rise": (
        IMAGE,
        {"4": {"intermediate_timesteps": 1.5708}},
        {},
        ("4", "intermediate_timesteps"),
        "the angles must decrease",
    ),
    "an empty instruction": (IMAGE, {"2": {"instruction": "custom"}}, {}, ("2", "custom_instruction"), "custom"),
    "a model that is not there": (
        IMAGE,
        {"1": {"pipeline": "absent"}},
        {},
        ("1", "pipeline"),
        "no pipeline folder called 'absent'",
    ),
    "sound in a gif": (VIDEO, SILENT, {"20": SOUND}, ("6", "format"), "gif has no sound"),
    "the VAE of another model": (VIDEO, {"5": {"vae": ["30", 2]}}, {"30": OTHER}, ("30", "pipeline"), "this VAE is"),
    "frames that are not there": (VIDEO, {"6": {"images": ["21", 0]}}, {"21": SELECTED}, ("21", "start"), "17"),
    "no frames": (VIDEO, {"3": {"frames": 0}}, {}, ("3", "frames"), "0"),
    "no frames in a second": (VIDEO, {"6": {"fps": 0}}, {}, ("6", "fps"), "0"),
}
"""Template, what is changed in it and added to it, the input that is wrong, and words of the message."""

OURS_INSIDE = re.compile(r"sana_nodes|\bSana(?:Load|Encode|Empty|SCM|Flow|Save|Decode|Select)[A-Z]?\w+|Traceback")
"""Names of our modules and classes, which the canvas does not show."""


def mistaken(name: str) -> dict:
    template, changes, added, *_ = MISTAKES[name]
    graph = {**copy.deepcopy(dict(templates()[template].graph)), **copy.deepcopy(added)}
    for key, values in changes.items():
        graph[key]["inputs"].update(values)
    return graph


@pytest.mark.parametrize("name", MISTAKES)
def test_one_message_on_the_input_that_is_wrong(editor, name, tmp_path):
    *_, (key, wrong), words = MISTAKES[name]
    page = editor.page
    editor.errors.clear()
    page.evaluate("graph => app.loadApiJson(graph, 'mistake')", mistaken(name))
    page.wait_for_timeout(700)
    set_values(editor, name)
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function("app.lastNodeErrors && Object.keys(app.lastNodeErrors).length", timeout=30_000)
    answered = page.evaluate("app.lastNodeErrors")
    errors = [error for each in answered.values() for error in each["errors"]]
    assert len(errors) == 1 and list(answered) == [key] and errors[0]["extra_info"]["input_name"] == wrong, answered
    text = read_on_the_page(editor)
    editor.picture(tmp_path / "page.png")
    assert words in text and not OURS_INSIDE.search(text), text
    assert not editor.ours()


def set_values(editor, name: str) -> None:
    """The wrong values, past what the page corrects while a person types (it rounds 100 to a multiple of 32)."""
    script = """([id, name, value]) => {
        const widget = app.graph.getNodeById(id).widgets?.find(each => each.name === name);
        if (widget) widget.value = value;
    }"""
    for key, values in MISTAKES[name][1].items():
        for wrong, value in values.items():
            if not isinstance(value, list):
                editor.page.evaluate(script, [int(key), wrong, value])


def read_on_the_page(editor) -> str:
    """The errors panel, with the details of its rows open; where the page has none, its messages."""
    page = editor.page
    page.wait_for_timeout(800)
    button = page.get_by_text("View details")
    if button.count():
        button.first.click()
    page.wait_for_selector("[data-testid=properties-panel] >> text=Errors", timeout=15_000)
    page.wait_for_timeout(500)
    for row in page.locator("[aria-label^='Info for '][aria-expanded=false]").all():
        row.click()
    page.wait_for_timeout(500)
    return page.inner_text("[data-testid=properties-panel]")


def test_there_are_ten():
    assert len(MISTAKES) == 10
