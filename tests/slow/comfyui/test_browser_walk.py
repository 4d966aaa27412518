"""A walk through ComfyUI's editor, classic and Nodes 2.0: dropped files, help, names that people search for, progress,
blueprints from the node library, apps, and what the pack adds to the page's start."""

from __future__ import annotations

import io
import json
import urllib.parse

import browser
import fresh
import numpy as np
import pytest
from PIL import Image
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.tools.templates import templates
from sana_nodes.tools.templates.parts import apps, blueprints
from sana_nodes.tools.templates.source import kinds_of
from server import Server

pytestmark = pytest.mark.skipif(browser.why_not() is not None, reason=str(browser.why_not()))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(fresh.home(tmp_path_factory.mktemp("fresh")), "--preview-method", "latent2rgb") as running:
        yield running


@pytest.fixture(scope="module", params=browser.RENDERINGS)
def opened(server, request):
    with browser.Editor(server, request.param) as opened:
        opened.rendering = request.param
        yield opened


@pytest.fixture
def editor(opened):
    opened.page.keyboard.press("Escape")
    opened.load({"nodes": [], "links": [], "version": 0.4})
    opened.errors.clear()
    yield opened
    assert not opened.ours()


def files_of(server, entry: dict) -> list[dict]:
    return [item for output in entry["outputs"].values() for item in output.get("images", [])]


def content(server, item: dict) -> bytes:
    asked = {key: item[key] for key in ("filename", "subfolder", "type")}
    return server.get("/view?" + urllib.parse.urlencode(asked))


def plain(graph: dict) -> dict:
    """A graph in API format without titles."""
    return {key: {"inputs": node["inputs"], "class_type": node["class_type"]} for key, node in graph.items()}


SET = """([id, name, value]) => {
    const widget = app.graph.getNodeById(id).widgets.find(each => each.name === name);
    widget.value = value;
    widget.callback?.(value);
}"""
FILES = {
    ".png": ("SANA-Sprint text to image", None),
    ".mp4": ("SANA-Video text to video", "mp4-h264"),
    ".webm": ("SANA-Video text to video", "webm-vp9"),
    ".webp": ("SANA-Video text to video", "webp"),
}


@pytest.mark.parametrize("suffix", FILES)
def test_a_saved_file_that_is_dropped_brings_its_graph(editor, server, suffix, tmp_path):
    title, format = FILES[suffix]
    editor.template(title)
    if format is not None:
        editor.page.evaluate(SET, [6, "format", format])
    before = plain(editor.api())
    [item] = files_of(server, editor.run(300))
    file = tmp_path / f"dropped{suffix}"
    file.write_bytes(content(server, item))
    assert item["filename"].endswith(suffix)
    editor.load({"nodes": [], "links": [], "version": 0.4})
    assert editor.page.evaluate("app.graph._nodes.length") == 0
    editor.drop(file)
    editor.page.wait_for_function("app.graph._nodes.length > 0", timeout=20_000)
    editor.page.wait_for_timeout(500)
    assert plain(editor.api()) == before


WATCH = """() => {
    window.seen = {steps: [], previews: [], running: []};
    const take = (name, key) => app.api.addEventListener(name, event => window.seen[key].push(event.detail));
    take("progress", "steps");
    take("executing", "running");
    app.api.addEventListener("b_preview", () => window.seen.previews.push(1));
}"""


def test_progress_and_previews_while_it_runs(editor, server):
    editor.page.evaluate(WATCH)
    editor.template("SANA-Video text to video")
    editor.page.evaluate(SET, [4, "seed", 77 if editor.rendering == "classic" else 78])
    editor.run(300)
    seen = editor.page.evaluate("window.seen")
    steps = [each["value"] for each in seen["steps"] if each["max"] == 12]
    assert steps == sorted(steps) and set(range(1, 13)) <= set(steps), steps
    assert len(seen["previews"]) >= 6


HELP = """() => {
    const root = document.querySelector(".node-help-content");
    const edge = root.getBoundingClientRect().right + 1;
    const cut = [...root.querySelectorAll("p, li, h1, h2, table, pre, code, img, video, a")]
        .filter(each => each.offsetParent && (each.getBoundingClientRect().right > edge
            || (each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX === "hidden")))
        .map(each => `${each.tagName}: ${each.innerText?.slice(0, 60)}`);
    return {text: root.innerText, cut, broken: [...root.querySelectorAll("img")]
        .filter(each => each.complete && !each.naturalWidth).map(each => each.src)};
}"""


SELECT = """kind => {
    app.graph.clear();
    const node = LiteGraph.createNode(kind);
    node.pos = [500, 200];
    app.graph.add(node);
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
}"""


def test_help_opens_and_nothing_is_cut_off(editor, tmp_path):
    page, wrong = editor.page, []
    for kind in sorted(NODE_CLASS_MAPPINGS):
        page.evaluate(SELECT, kind)
        page.wait_for_selector("[data-testid=info-button]", timeout=10_000)
        page.click("[data-testid=info-button]")
        page.wait_for_function(
            "name => document.querySelector('.node-help-content')?.innerText.includes(name)",
            arg=f"{NODE_CLASS_MAPPINGS[kind].DISPLAY_NAME}\n",
            timeout=10_000,
        )
        page.wait_for_function("document.querySelector('.node-help-content').innerText.includes('What goes wrong')")
        page.wait_for_timeout(200)
        shown = page.evaluate(HELP)
        wrong += [(kind, each) for each in shown["cut"] + shown["broken"]]
        if kind == "SanaSaveVideo":
            editor.picture(tmp_path / "help.png")
    assert not wrong


@pytest.mark.parametrize("alias", ["nvidia", "inpaint", "text to video", "image to video"])
def test_nodes_are_found_by_what_people_call_them(editor, alias):
    page = editor.page
    page.mouse.dblclick(800, 500)
    page.wait_for_selector("[data-testid=result-item]", timeout=15_000)
    page.keyboard.type(alias, delay=20)
    page.wait_for_selector("[data-testid=result-item]:has-text('Sana')", timeout=15_000)
    page.wait_for_timeout(500)
    found = page.eval_on_selector_all("[data-testid=result-item]", "all => all.map(each => each.innerText)")
    mine = [text for text in found if "Sana" in text]
    page.keyboard.press("Escape")
    assert mine, found[:20]
    named = {cls.DISPLAY_NAME for cls in NODE_CLASS_MAPPINGS.values() if alias in cls.SEARCH_ALIASES}
    assert any(name in text for name in named for text in mine)


def drag_from_library(editor, title: str) -> None:
    """Search a blueprint in the node library and drag it onto the canvas."""
    page = editor.page
    if not page.get_by_placeholder("Search...").count():
        page.keyboard.press("n")
    page.get_by_placeholder("Search...").first.fill(title)
    page.wait_for_timeout(1200)
    box = page.get_by_text(title, exact=True).first.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(700, 300, steps=5)
    page.mouse.move(760, 260, steps=5)
    page.mouse.up()
    page.wait_for_function("app.graph._nodes.some(each => each.subgraph)", timeout=15_000)
    page.wait_for_timeout(500)


CONNECT = """kind => {
    const inside = app.graph._nodes.find(each => each.subgraph), saver = LiteGraph.createNode(kind);
    saver.pos = [inside.pos[0] + 500, inside.pos[1]];
    app.graph.add(saver);
    inside.connect(0, saver, 0);
    if (!inside.inputs.some(each => each.name === "image")) return;
    const image = LiteGraph.createNode("LoadImage");
    image.pos = [inside.pos[0] - 400, inside.pos[1]];
    app.graph.add(image);
    image.connect(0, inside, inside.inputs.findIndex(each => each.name === "image"));
}"""


@pytest.mark.parametrize("made", blueprints(), ids=lambda made: made.title)
def test_a_blueprint_is_dragged_from_the_library_and_runs(editor, server, made):
    drag_from_library(editor, made.title)
    video = "video" in made.title
    editor.page.evaluate(CONNECT, "SanaSaveVideo" if video else "SaveImage")
    exported = {key.rpartition(":")[2]: node for key, node in editor.api().items() if ":" in key}
    by_class = {node["class_type"]: node for node in exported.values()}
    for key in (key for column in made.columns for key in column):
        wanted = templates()[made.template].graph[key]
        values = by_class[wanted["class_type"]]["inputs"]
        for name, kind in kinds_of(wanted["class_type"]).items():
            if kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                assert values[name] == wanted["inputs"][name], (key, name)
    entry = editor.run(300)
    assert entry["status"]["status_str"] == "success", entry["status"]
    [item] = files_of(server, entry)
    if made.title == "SANA-Sprint text to image":
        editor.template(made.title)
        editor.page.evaluate(SET, [6, "filename_prefix", f"template/{editor.rendering}"])
        [own] = files_of(server, editor.run(300))
        images = [np.asarray(Image.open(io.BytesIO(content(server, each)))) for each in (item, own)]
        assert np.array_equal(*images), "the blueprint's image is not the template's"


SHOWN = """name => [...document.querySelectorAll("img, video, source")].some(each =>
    each.src.includes(encodeURIComponent(name)) && each.closest("video, img").getBoundingClientRect().width > 200)"""


@pytest.mark.parametrize("title", apps())
def test_an_app_opens_filled_and_runs(editor, server, title, tmp_path):
    page = editor.page
    graph = json.loads(server.get(f"/api/workflow_templates/sana-nodes/{urllib.parse.quote(title)}.json"))
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, title])
    page.wait_for_selector("text=Number of runs", timeout=15_000)
    wanted = templates()[apps()[title].template].graph
    prompt = next(
        node["inputs"].get("text") or node["inputs"]["prompt"] for node in wanted.values() if "clip" in node["inputs"]
    )
    assert page.locator("textarea").first.input_value() == prompt
    shown = page.inner_text("body")
    for _, name in apps()[title].inputs:
        assert name in shown
    before = set(json.loads(server.get("/history")))
    page.get_by_role("button", name="Run", exact=True).last.click()
    entry = editor.finished(before, 300)
    assert entry["status"]["status_str"] == "success"
    [item] = files_of(server, entry)
    page.wait_for_timeout(3000)
    editor.picture(tmp_path / "app.png")
    assert page.evaluate(SHOWN, item["filename"]), "the app does not show its result"
    page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
