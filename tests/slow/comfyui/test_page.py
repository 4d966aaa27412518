"""The extension in ComfyUI's own editor, in a real browser: results, nodes that react, the sketch, errors, help."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
import urllib.parse

import browser
import graphs
import numpy as np
import pytest
from browser import RENDERINGS, Editor
from PIL import Image
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes.media import sketch
from sana_nodes.samplers import trigflow
from server import Server

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(browser.why_not() is not None, reason=browser.why_not() or ""),
]
SET = """([id, name, value]) => {
    const widget = app.graph.getNodeById(id).widgets.find(each => each.name === name);
    widget.value = value;
    widget.callback?.(value);
}"""
LINK = """([from, slot, to, name]) => {
    const node = app.graph.getNodeById(to);
    app.graph.getNodeById(from).connect(slot, node, node.inputs.findIndex(each => each.name === name));
}"""


@pytest.fixture(scope="module")
def server(home, reference, video_references):
    with Server(home, "--preview-method", "auto") as running:
        yield running


@pytest.fixture(scope="module", params=RENDERINGS)
def opened(request, server):
    with Editor(server, request.param) as editor:
        editor.rendering = request.param
        yield editor


@pytest.fixture
def editor(opened):
    opened.clear()
    opened.errors.clear()
    yield opened
    assert not opened.ours()


def add(editor, kind: str, **values) -> int:
    return browser.add(editor.page, kind, **values)


def change(editor, node: int, name: str, value) -> None:
    editor.page.evaluate(SET, [node, name, value])
    editor.page.wait_for_timeout(400)


def link(editor, source: int, slot: int, target: int, name: str) -> None:
    editor.page.evaluate(LINK, [source, slot, target, name])
    editor.page.wait_for_timeout(200)


def saver(editor, **values) -> int:
    images = add(editor, "EmptyImage", width=96, height=64, batch_size=12, color=0x4080C0)
    node = add(editor, "SanaSaveVideo", fps=8, **values)
    link(editor, images, 0, node, "images")
    return node


def result(editor) -> dict:
    """What the node's result shows, once its media is there."""
    script = """() => {
        const root = document.querySelector(".sana-result"), media = root?.querySelector("video, img");
        if (!root || (media && !(media.videoWidth || media.naturalWidth))) return null;
        return {text: root.innerText, tag: media?.tagName, width: media?.videoWidth || media?.naturalWidth,
            muted: media?.muted, paused: media?.paused, loop: media?.loop, time: media?.currentTime,
            link: root.querySelector("a").href, count: document.querySelectorAll(".sana-result").length,
            core: document.querySelectorAll(".video-preview, .image-preview, .comfy-img-preview").length};
    }"""
    editor.page.wait_for_function(script, timeout=15_000)
    return editor.page.evaluate(script)


@pytest.mark.parametrize("format,tag", [("mp4-h264", "VIDEO"), ("webm-vp9", "VIDEO"), ("gif", "IMG"), ("webp", "IMG")])
def test_results_are_in_the_node(editor, format, tag):
    saver(editor, format=format, filename_prefix="page/%date:yyyy%-%EmptyImage.width%")
    assert editor.run()["status"]["status_str"] == "success"
    shown = result(editor)
    assert (shown["tag"], shown["width"], shown["core"]) == (tag, 96, 0)
    assert f"page/{time.strftime('%Y')}-96_" in shown["text"]
    if tag == "VIDEO":
        editor.page.wait_for_function("document.querySelector('.sana-result video').currentTime > 0", timeout=15_000)
        assert shown["muted"] and shown["loop"]


def test_a_format_that_browsers_do_not_play_and_no_stale_clip(editor, server):
    node = saver(editor, format="mp4-h264", filename_prefix="page/clip")
    editor.run()
    assert ".mp4" in result(editor)["text"]
    change(editor, node, "format", "mkv-ffv1")
    (output,) = editor.run()["outputs"].values()
    editor.page.wait_for_function("document.querySelector('.sana-result').innerText.includes('.mkv')")
    shown = result(editor)
    assert shown["tag"] == "VIDEO" and shown["count"] == 1 and ".mp4" not in shown["text"]
    assert ".mkv" in urllib.parse.unquote(shown["link"])
    jobs = json.loads(server.get("/api/jobs?limit=1"))["jobs"] if b"jobs" in server.get("/api/jobs?limit=1") else []
    assert output["files"][0]["format"] == "video/x-matroska"
    assert not jobs or jobs[0]["preview_output"]["filename"].endswith(".mkv"), "the assets panel does not list it"


def test_results_are_there_again_with_the_tab(editor):
    saver(editor, format="gif", filename_prefix="page/tab")
    editor.run()
    result(editor)
    editor.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    editor.page.wait_for_function("!document.querySelector('.sana-result')", timeout=15_000)
    editor.page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    assert ".gif" in result(editor)["text"]


def lines(editor) -> str:
    return "\n".join(editor.page.eval_on_selector_all(".sana-line", "all => all.map(each => each.textContent)"))


def test_the_trained_size_follows_the_numbers(editor):
    node = add(editor, "SanaResolution", width=1000, height=700)
    editor.page.wait_for_function("document.querySelector('.sana-line')?.textContent")
    for width, height, bins in ((1000, 700, "1024px"), (1280, 720, "video 720p"), (832, 480, "video 480p")):
        for name, value in (("width", width), ("height", height), ("bins", bins)):
            change(editor, node, name, value)
        expected = NODE_CLASS_MAPPINGS["SanaResolution"]().choose(width, height, bins)
        assert f"{expected[0]} × {expected[1]} · " in lines(editor)
    assert "per latent frame" in lines(editor)


def test_loaders_say_what_a_file_is(editor, server):
    node = add(editor, "SanaLoadPipeline", pipeline="tiny")
    editor.page.wait_for_function("document.querySelector('.sana-line')?.textContent.includes('Gemma-2')")
    assert "SANA-Sprint" in lines(editor) and "DC-AE" in lines(editor) and "fp32" in lines(editor)
    change(editor, node, "weight_dtype", "bf16")
    editor.page.wait_for_function("document.querySelector('.sana-line')?.textContent.includes('bf16')")
    query = urllib.parse.urlencode({"node": "SanaLoadPipeline", "name": "tiny"})
    times = []
    for _ in range(9):
        began = time.perf_counter()
        server.get(f"/sana-nodes/facts?{query}")
        times.append(time.perf_counter() - began)
    assert sorted(times)[4] < 0.02, times
    outside = urllib.parse.urlencode({"node": "SanaLoadVAE", "name": "../diffusers/tiny/vae"})
    assert list(json.loads(server.get(f"/sana-nodes/facts?{outside}"))) == ["error"]


def test_a_loader_asks_once_for_a_file(editor):
    asked = []
    note = lambda request: asked.append(request.url) if "/sana-nodes/facts" in request.url else None  # noqa: E731
    editor.page.on("request", note)
    try:
        add(editor, "SanaLoadPipeline", pipeline="tiny")
        editor.page.wait_for_timeout(1000)
        made = len(asked)
        editor.load(editor.page.evaluate("app.graph.serialize()"))
        editor.page.wait_for_timeout(1000)
    finally:
        editor.page.remove_listener("request", note)
    assert (made, len(asked)) == (1, 2) and "name=tiny" in asked[-1]


def test_the_schedule_is_that_of_the_sampler(editor):
    for given in ({}, {"steps": 4}, {"steps": 4, "denoise": 0.7}, {"steps": 1, "denoise": 0.3}, {"denoise": 0.5}):
        editor.clear()
        values = {"steps": 2, "max_timesteps": 1.5708, "intermediate_timesteps": 1.3, "denoise": 1.0, **given}
        add(editor, "SanaSCMSigmas", **values)
        editor.page.wait_for_function("document.querySelector('.sana-schedule')?.innerText.trim()")
        shown = editor.page.eval_on_selector(".sana-schedule", "each => each.innerText").split()
        assert [float(each) for each in shown] == pytest.approx(trigflow.scm_sigmas(**values).tolist(), abs=1e-4)
        assert editor.page.eval_on_selector_all(".sana-schedule circle", "all => all.length") == len(shown)


def test_sigmas_grey_what_they_replace(editor):
    sigmas, sampler = add(editor, "SanaSCMSigmas"), add(editor, "SanaSCMSample")
    link(editor, sigmas, 0, sampler, "sigmas")
    disabled = f"app.graph.getNodeById({sampler}).widgets.filter(each => each.disabled).map(each => each.name)"
    replaced = ["steps", "max_timesteps", "intermediate_timesteps", "denoise"]
    assert editor.page.evaluate(disabled) == replaced
    editor.page.evaluate(f"app.graph.getNodeById({sampler}).disconnectInput(3)")
    editor.page.wait_for_timeout(300)
    assert editor.page.evaluate(disabled) == []


def test_custom_reveals_its_text_box(editor):
    node = add(editor, "SanaEncodePrompt")
    visible = """id => {
        const widget = app.graph.getNodeById(id).widgets.find(each => each.name === "custom_instruction");
        if (!LiteGraph.vueNodesMode) return !widget.hidden;
        const boxes = [...document.querySelectorAll(`[data-node-id="${id}"] textarea`)];
        return boxes.length === 2;
    }"""
    editor.page.wait_for_timeout(700)
    assert editor.page.evaluate(visible, node) is False
    change(editor, node, "instruction", "custom")
    assert editor.page.evaluate(visible, node) is True
    change(editor, node, "instruction", "image")
    assert editor.page.evaluate(visible, node) is False


def stroke(editor, *points) -> None:
    """With the mouse, from point to point, in parts of the canvas."""
    box = editor.page.locator(".sana-sketch canvas").first.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    editor.page.mouse.move(*places[0])
    editor.page.mouse.down()
    for place in places[1:]:
        editor.page.mouse.move(*place, steps=6)
    editor.page.mouse.up()
    editor.page.wait_for_timeout(100)


def on_canvas(editor) -> np.ndarray:
    """The red of the canvas, [H, W] in [0, 1]."""
    script = """() => {
        const canvas = document.querySelector(".sana-sketch canvas");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let red = "";
        for (let i = 0; i < data.length; i += 4) red += String.fromCharCode(data[i]);
        return [canvas.width, canvas.height, btoa(red)];
    }"""
    width, height, data = editor.page.evaluate(script)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width) / 255


def saved_sketch(editor, node: int) -> str:
    return editor.page.evaluate(f"app.graph.getNodeById({node}).widgets.find(each => each.name === 'sketch').value")


def test_the_sketch_is_made_saved_and_loaded(editor):
    node = add(editor, "SanaSketch", width=512, height=512)
    editor.fit()
    stroke(editor, (0.2, 0.2), (0.8, 0.8))
    stroke(editor, (0.2, 0.8), (0.8, 0.2))
    editor.page.locator(".sana-sketch-tools button").nth(1).click()  # the eraser
    stroke(editor, (0.5, 0.45), (0.5, 0.55))
    text, shown = saved_sketch(editor, node), on_canvas(editor)
    assert len(json.loads(text)["strokes"]) == 3 and len(text) < 2000
    image, _ = sketch.render(text, shown.shape[1], shown.shape[0])
    assert np.abs(shown - image[0, ..., 0].numpy()).mean() < 0.004, "the node renders another sketch than the canvas"
    saved = editor.page.evaluate("app.graph.serialize()")
    editor.clear()
    editor.load(saved)
    assert saved_sketch(editor, node) == text
    assert np.abs(on_canvas(editor) - shown).max() < 0.01
    editor.page.locator(".sana-sketch-tools button").nth(2).click()  # undo
    editor.page.wait_for_timeout(200)
    assert len(json.loads(saved_sketch(editor, node))["strokes"]) == 2


def realtime(editor) -> dict[str, int]:
    """A graph from a sketch through a ControlNet to an image, of the demo weights; its nodes by what they do."""
    nodes = {
        "load": add(editor, "SanaLoadPipeline", pipeline="sana-sprint-demo"),
        "prompt": add(editor, "SanaEncodePrompt", text="a red square in the centre of a blue background"),
        "latent": add(editor, "SanaEmptyLatent", width=256, height=256),
        "net": add(editor, "SanaLoadControlNet", control_net_name="sana-sprint-demo-sketch"),
        "sketch": add(editor, "SanaSketch", width=256, height=256),
        "apply": add(editor, "ControlNetApplyAdvanced"),
        "sample": add(editor, "SanaSCMSample", seed=1, control_after_generate="fixed"),
        "decode": add(editor, "VAEDecode"),
        "show": add(editor, "PreviewImage"),
    }
    for source, slot, target, name in (
        ("load", 1, "prompt", "clip"),
        ("prompt", 0, "apply", "positive"),
        ("prompt", 0, "apply", "negative"),
        ("net", 0, "apply", "control_net"),
        ("sketch", 0, "apply", "image"),
        ("load", 2, "apply", "vae"),
        ("load", 0, "sample", "model"),
        ("apply", 0, "sample", "positive"),
        ("latent", 0, "sample", "latent_image"),
        ("sample", 0, "decode", "samples"),
        ("load", 2, "decode", "vae"),
        ("decode", 0, "show", "images"),
    ):
        link(editor, nodes[source], slot, nodes[target], name)
    return nodes


def history(server) -> dict:
    return json.loads(server.get("/history"))


def settled(editor, server, seconds: float = 60) -> dict:
    """The history once nothing runs or waits.

    Waiting is the page's: its requests go through the test, which answers none of them while it sleeps.
    """
    deadline, quiet = time.time() + seconds, 0
    while time.time() < deadline:
        queue = json.loads(server.get("/queue"))
        quiet = 0 if queue["queue_running"] or queue["queue_pending"] else quiet + 1
        if quiet == 2:
            return history(server)
        editor.page.wait_for_timeout(700 if quiet else 50)
    raise TimeoutError("the queue does not end")


def image_of(server, entry) -> np.ndarray:
    (item,) = [item for output in entry["outputs"].values() for item in output.get("images", [])]
    return np.asarray(Image.open(io.BytesIO(server.get("/view?" + urllib.parse.urlencode(item))))) / 255


def test_each_stroke_renders_and_the_latest_wins(editor, server):
    nodes = realtime(editor)
    editor.fit()
    first = editor.run()
    assert first["status"]["status_str"] == "success"
    set_mode(editor, "change")
    try:
        before = set(settled(editor, server))
        began = time.time()
        stroke(editor, (0.2, 0.2), (0.8, 0.8))
        deadline = time.time() + PATIENCE
        while not set(history(server)) - before and time.time() < deadline:
            editor.page.wait_for_timeout(10)
        spent = time.time() - began
        entries = settled(editor, server)
        (key,) = set(entries) - before
        messages = dict(entries[key]["status"]["messages"])
        kept = {str(each) for each in messages["execution_cached"]["nodes"]}
        assert kept == {str(nodes[name]) for name in ("load", "prompt", "latent", "net")}, "something else ran again"
        run = (messages["execution_success"]["timestamp"] - messages["execution_start"]["timestamp"]) / 1000
        record(editor.rendering, spent, run)
        before = set(entries)
        for i in range(4):
            stroke(editor, (0.1, 0.2 + 0.2 * i), (0.9, 0.2 + 0.2 * i))
        latest = saved_sketch(editor, nodes["sketch"])
        deadline, rendered = time.time() + PATIENCE, ""
        while rendered != latest and time.time() < deadline:
            editor.page.wait_for_timeout(200)
            entries = history(server)
            new = sorted(set(entries) - before, key=lambda key: entries[key]["prompt"][0])
            rendered = entries[new[-1]]["prompt"][2][str(nodes["sketch"])]["inputs"]["sketch"] if new else ""
        assert rendered == latest, "the latest sketch was not rendered"
        assert len(new) <= 4
    finally:
        set_mode(editor, "disabled")


def record(rendering: str, spent: float, run: float) -> None:
    sys.stdout.write(f"{rendering}: stroke to image {spent:.2f} s with the stroke, of which the run {run:.2f} s\n")


def set_mode(editor, mode: str) -> None:
    """Run (On Change), or only when asked; the editor's own store holds it."""
    script = """mode => {
        const pinia = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia;
        pinia._s.get("queueSettingsStore").mode = mode;
    }"""
    editor.page.evaluate(script, mode)


PATIENCE = 150
"""Seconds for what takes one on a machine that has nothing else to do."""

MISTAKES = [
    ({"3": {"width": 100}}, "the nearest are 96 and 128"),
    ({"4": {"steps": 0}}, "smaller than min"),
    ({"4": {"intermediate_timesteps": 1.5708}}, "the angles must decrease"),
    ({"2": {"instruction": "custom"}}, "custom"),
    ({"1": {"pipeline": "absent"}}, "absent"),
]


@pytest.mark.parametrize("given,text", MISTAKES, ids=lambda value: str(value)[:24])
def test_one_error_for_a_mistake(server, given, text):
    graph = graphs.example()
    for key, values in given.items():
        graph[key]["inputs"].update(values)
    graph["2"]["inputs"].setdefault("custom_instruction", "")
    answer = server.post("/prompt", {"prompt": graph})
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    assert len(errors) == 1 and text in json.dumps(errors), errors


def test_an_error_of_a_run_is_a_sana_error(server):
    wrong = graphs.example()
    wrong["3"] = graphs.node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    messages = dict(server.run(wrong)["status"]["messages"])["execution_error"]
    assert messages["exception_type"] == "SanaError"


def test_traps_are_told_on_the_page(editor, server):
    graph = graphs.with_ksampler(steps=12, pipeline="tiny")
    graph["4"]["inputs"]["cfg"] = 3.0
    editor.page.evaluate("graph => app.loadApiJson(graph, 'traps')", graph)
    editor.page.wait_for_timeout(500)
    editor.run()
    editor.page.wait_for_function("document.body.innerText.includes('SANA-Sprint has its guidance inside')")
    assert "12 steps: SANA-Sprint is made for 1 to 4" in editor.page.evaluate("document.body.innerText")


@pytest.mark.parametrize("name", sorted(NODE_CLASS_MAPPINGS))
def test_help_pages_are_where_the_editor_looks_first(server, name):
    page = server.get(f"/extensions/sana-nodes/docs/{name}/en.md").decode()
    assert page.startswith("# ")
