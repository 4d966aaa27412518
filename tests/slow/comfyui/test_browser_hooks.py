"""What the extension does when the graph changes under it: a node deleted while it waits, a graph loaded while a stroke
is made, undo, copy and paste, subgraphs. Classic and Nodes 2.0."""

from __future__ import annotations

import json

import browser
import pytest

pytestmark = pytest.mark.skipif(browser.why_not() is not None, reason=str(browser.why_not()))

LISTENERS = """() => {
    window.listening = window.listening ?? new Map();
    if (app.api.counted) return;
    app.api.counted = true;
    const change = (name, by) => window.listening.set(name, (window.listening.get(name) ?? 0) + by);
    const [add, remove] = [app.api.addEventListener, app.api.removeEventListener];
    app.api.addEventListener = function (name, ...rest) { change(name, 1); return add.call(this, name, ...rest); };
    app.api.removeEventListener = function (name, ...rest) {
        change(name, -1);
        return remove.call(this, name, ...rest);
    };
}"""
"""Count who listens to the server's messages from now on."""


@pytest.fixture
def page(editor):
    editor.page.keyboard.press("Escape")
    editor.load({"nodes": [], "links": [], "version": 0.4})
    editor.errors.clear()
    yield editor.page
    assert not editor.ours()


def add(page, kind: str, at=(300, 150), **values) -> int:
    return browser.add(page, kind, at, **values)


def sketch_of(page, node: int) -> dict:
    text = page.evaluate(f"app.graph.getNodeById({node}).widgets.find(each => each.name === 'sketch').value")
    return json.loads(text or '{"strokes": []}')


def press(page, *points) -> None:
    """The mouse pressed on the first canvas and moved, not yet let go."""
    page.wait_for_selector(".sana-sketch canvas")
    page.wait_for_timeout(500)
    box = page.locator(".sana-sketch canvas").first.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)


def stroke(page, *points) -> None:
    press(page, *points)
    page.mouse.up()
    page.wait_for_timeout(300)


def lines(page) -> list[str]:
    return page.eval_on_selector_all(".sana-line", "all => all.map(each => each.textContent)")


def test_a_loader_deleted_while_its_request_runs(page, editor):
    def slowly(route):
        page.wait_for_timeout(400)
        route.continue_()

    page.route("**/sana-nodes/facts*", slowly)
    try:
        node = add(page, "SanaLoadPipeline", pipeline="sana-sprint-demo")
        page.wait_for_timeout(100)
        page.evaluate(f"app.graph.remove(app.graph.getNodeById({node}))")
        page.wait_for_timeout(1500)
    finally:
        page.unroute("**/sana-nodes/facts*")
    assert not [text for text in lines(page) if text] and not editor.errors


def test_a_loader_whose_file_is_not_there_says_so_in_a_line(page):
    add(page, "SanaLoadVAE", vae_name="absent.safetensors")
    page.wait_for_function("document.querySelector('.sana-line')?.textContent")
    assert lines(page) == ["No such file yet: Run says how to get it"]


def test_the_hooks_of_a_closed_graph_are_given_back(page):
    """Also of nodes in a subgraph: a listener that stays holds its node, and a sketch would go on to start runs."""
    page.evaluate(LISTENERS)
    before = page.evaluate("Object.fromEntries(window.listening)")
    for kind in ("SanaLoadPipeline", "SanaSketch", "SanaSaveVideo", "SanaSCMSample"):
        add(page, kind)
    page.wait_for_timeout(500)
    inside = [add(page, "SanaLoadVAE", (900, 100)), add(page, "SanaSketch", (900, 400))]
    page.wait_for_timeout(500)
    page.evaluate("ids => app.graph.convertToSubgraph(new Set(ids.map(id => app.graph.getNodeById(id))))", inside)
    page.wait_for_timeout(500)
    during = page.evaluate("Object.fromEntries(window.listening)")
    assert during["sana-nodes.status"] >= before.get("sana-nodes.status", 0) + 2
    page.evaluate("app.loadGraphData({nodes: [], links: [], version: 0.4})")
    page.wait_for_timeout(700)
    after = page.evaluate("Object.fromEntries(window.listening)")
    ours = ("sana-nodes.status", "status")
    assert {name: after[name] for name in ours} == {name: before.get(name, 0) for name in ours}


STATUS = """([node, text]) => app.api.dispatchEvent(new CustomEvent("sana-nodes.status", {detail: {node, text}}))"""


def test_a_loader_in_a_subgraph_speaks_for_itself(page):
    """The ids of nodes in a subgraph begin anew: "9:1" is not the graph's own node 1."""
    outside = add(page, "SanaLoadPipeline", pipeline="sana-sprint-demo")
    page.wait_for_function("document.querySelector('.sana-line')?.textContent.includes('SANA-Sprint')")
    page.evaluate(STATUS, [f"9:{outside}", "loading another"])
    assert "loading another" not in lines(page)
    page.evaluate(STATUS, [f"{outside}", "loading this"])
    assert "loading this" in lines(page)
    page.evaluate(STATUS, [f"{outside}", ""])
    assert any("SANA-Sprint" in text for text in lines(page))


def test_a_linked_number_leaves_no_angles_of_an_old_one(page):
    number, sampler = add(page, "PrimitiveInt", (20, 150)), add(page, "SanaSCMSigmas", steps=4)
    page.wait_for_function("document.querySelector('.sana-schedule')?.innerText.trim()")
    page.evaluate(
        """([from, to]) => {
        const node = app.graph.getNodeById(to);
        app.graph.getNodeById(from).connect(0, node, node.inputs.findIndex(each => each.name === "steps"));
    }""",
        [number, sampler],
    )
    page.wait_for_function("!document.querySelector('.sana-schedule').innerText.trim()", timeout=5000)


def test_a_graph_loaded_while_a_stroke_is_made(page, editor):
    add(page, "SanaSketch", width=512, height=512)
    press(page, (0.3, 0.3), (0.6, 0.6))
    editor.load({"nodes": [], "links": [], "version": 0.4})
    page.mouse.move(800, 500)
    page.mouse.up()
    page.wait_for_timeout(500)
    assert page.evaluate("app.graph._nodes.length") == 0 and not editor.errors
    node = add(page, "SanaSketch", width=512, height=512)
    stroke(page, (0.3, 0.3), (0.6, 0.6))
    assert len(sketch_of(page, node)["strokes"]) == 1


def test_undo_and_redo_of_the_editor_take_a_stroke_back(page):
    node = add(page, "SanaSketch", width=512, height=512)
    page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.()")
    stroke(page, (0.2, 0.2), (0.8, 0.2))
    stroke(page, (0.2, 0.8), (0.8, 0.8))
    page.mouse.move(60, 860)
    page.keyboard.press("Control+z")
    page.wait_for_timeout(800)
    assert len(sketch_of(page, node)["strokes"]) == 1
    page.keyboard.press("Control+y")
    page.wait_for_timeout(800)
    assert len(sketch_of(page, node)["strokes"]) == 2


def test_a_copied_sketch_is_one_of_its_own(page):
    node = add(page, "SanaSketch", width=512, height=512)
    stroke(page, (0.2, 0.2), (0.8, 0.2))
    page.evaluate(f"app.canvas.selectNode(app.graph.getNodeById({node}))")
    page.evaluate("app.canvas.copyToClipboard(); app.canvas.graph_mouse[0] = 900; app.canvas.pasteFromClipboard()")
    page.wait_for_timeout(700)
    copied = page.evaluate("app.graph._nodes.map(each => each.id)")[-1]
    assert copied != node and sketch_of(page, copied) == sketch_of(page, node)
    page.evaluate(f"app.graph.remove(app.graph.getNodeById({node}))")
    page.evaluate(f"app.graph.getNodeById({copied}).pos = [300, 150]; app.canvas.deselectAll()")
    page.wait_for_timeout(500)
    stroke(page, (0.5, 0.5), (0.8, 0.8))
    assert len(sketch_of(page, copied)["strokes"]) == 2


COALESCED = """() => {
    const canvas = document.querySelector(".sana-sketch canvas"), box = canvas.getBoundingClientRect();
    const [width, height] = [box.width, box.height];
    const at = (x, y) => ({clientX: box.left + x * width, clientY: box.top + y * height, pointerId: 1, button: 0});
    canvas.setPointerCapture = () => {};
    canvas.dispatchEvent(new PointerEvent("pointerdown", at(0.1, 0.5)));
    const between = [at(0.4, 0.5), at(0.6, 0.5), at(0.9, 0.5)].map(each => new PointerEvent("pointermove", each));
    canvas.dispatchEvent(new PointerEvent("pointermove", {...at(0.9, 0.5), coalescedEvents: between}));
    const data = canvas.getContext("2d").getImageData(0, Math.round(canvas.height / 2), canvas.width, 1).data;
    canvas.dispatchEvent(new PointerEvent("pointermove", {...at(0.9, 0.9), pointerId: 2}));
    canvas.dispatchEvent(new PointerEvent("pointerup", at(0.9, 0.5)));
    return [0.25, 0.5, 0.75].map(part => data[4 * Math.round(part * canvas.width)]);
}"""


def test_all_of_a_fast_stroke_is_seen_while_it_is_made(page):
    """A browser joins moves between two frames into one event; a second finger adds nothing."""
    node = add(page, "SanaSketch", width=512, height=512)
    page.wait_for_selector(".sana-sketch canvas")
    page.wait_for_timeout(500)
    assert page.evaluate(COALESCED) == [255, 255, 255]
    [made] = sketch_of(page, node)["strokes"]
    assert len(made["p"]) == 8 and set(made["p"][1::2]) == {5000}
