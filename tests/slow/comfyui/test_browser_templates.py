"""Every template in ComfyUI's editor, classic and Nodes 2.0: what it exports, and what it makes on the demo weights."""

from __future__ import annotations

import browser
import pytest
from sana_nodes.tools import workflows
from sana_nodes.tools.templates import templates

pytestmark = pytest.mark.skipif(browser.why_not() is not None, reason=str(browser.why_not()))
ALL = templates()


@pytest.mark.parametrize("name", ALL)
def test_what_the_editor_exports_is_the_twin(editor, name):
    editor.template(ALL[name].title)
    editor.page.wait_for_timeout(1000)
    places = editor.page.evaluate(PLACES)
    assert not misplaced(places) and places["scale"] >= (0.55 if name == LARGEST else READABLE)
    exported = editor.api()
    for node in exported.values():
        node.pop("_meta", None)
    wanted = {key: {k: v for k, v in node.items() if k != "_meta"} for key, node in ALL[name].graph.items()}
    assert exported == wanted


SHOWN = """names => names.every(name => {
    const has = src => decodeURIComponent(src ?? "").replaceAll("+", " ").includes(name);
    const canvas = app.graph._nodes.flatMap(node => node.imgs ?? []).filter(each => each.naturalWidth);
    const page = [...document.querySelectorAll("img, video")].filter(
        each => (each.naturalWidth || each.videoWidth) && each.getBoundingClientRect().width > 40);
    return [...canvas, ...page].some(each => has(each.src));
})"""
"""Whether each of these files is shown, on the canvas or in an element of the page."""


PLACES = """() => {
    const scale = app.canvas.ds.scale, [left, top] = app.canvas.ds.offset, title = LiteGraph.NODE_TITLE_HEIGHT;
    const corner = app.canvas.canvas.getBoundingClientRect();
    const box = (name, x, y, width, height) => ({name, left: x, top: y, right: x + width, bottom: y + height});
    const nodes = app.graph._nodes.filter(node => !node.flags.collapsed).map(node => {
        const shown = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`);
        if (!shown) return box(node.title, node.pos[0], node.pos[1] - title, node.size[0], node.size[1] + title);
        const at = shown.getBoundingClientRect();
        const [x, y] = [(at.left - corner.left) / scale - left, (at.top - corner.top) / scale - top];
        return box(node.title, x, y, at.width / scale, at.height / scale);
    });
    const groups = app.graph._groups.map(group => box(group.title, ...group.pos, ...group.size));
    return {nodes, groups, scale, title};
}"""
"""Where everything lies in the graph, as this rendering shows it."""

NEAR = 3
"""Pixels that a shadow or rounding may take."""


def misplaced(places: dict) -> list[str]:
    """Nodes that lie on another one, or leave their group."""
    found = []
    for i, one in enumerate(places["nodes"]):
        for other in places["nodes"][:i]:
            across = min(one["right"], other["right"]) - max(one["left"], other["left"])
            down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
            if across > NEAR and down > NEAR:
                found.append(f"{one['name']} lies on {other['name']} by {down:.0f}")
        around = [g for g in places["groups"] if g["left"] <= one["left"] < g["right"] and g["top"] < one["top"]]
        inside = max(around, key=lambda group: group["top"])
        over = one["bottom"] - inside["bottom"]
        if over > NEAR or one["right"] > inside["right"] + NEAR:
            found.append(f"{one['name']} leaves {inside['name']} by {over:.0f}")
    return found


READABLE, LARGEST = 0.572, "longsana_story"
"""The zoom below which the classic canvas shows no text, and the one template that is too large for this window."""


def open_from_the_browser(editor, title: str) -> None:
    """As a person opens it: Templates, sana-nodes, the card."""
    page = editor.page
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.locator("[role=dialog] >> text=sana-nodes").first.click(timeout=60_000)
    page.click(f'[data-testid="template-workflow-{title}"]', timeout=60_000)
    page.wait_for_function(
        "title => app.extensionManager.workflow.activeWorkflow?.filename === title", arg=title, timeout=30_000
    )
    page.wait_for_timeout(1500)


@pytest.mark.parametrize("name", [name for name, template in ALL.items() if template.demo])
def test_a_fresh_install_generates(editor, name, tmp_path):
    """From the template browser to the result in the node."""
    editor.errors.clear()
    open_from_the_browser(editor, ALL[name].title)
    editor.picture(tmp_path / "opened.png")
    places = editor.page.evaluate(PLACES)
    assert not misplaced(places) and places["scale"] >= READABLE
    entry = editor.run(300)
    assert entry["status"]["status_str"] == "success", entry["status"]
    files = [each for output in entry["outputs"].values() for each in output.get("images", [])]
    saved = [each["filename"] for each in files if each["type"] == "output"]
    editor.page.wait_for_timeout(2500)
    editor.picture(tmp_path / "result.png")
    assert saved
    editor.page.wait_for_function(SHOWN, arg=saved, timeout=20_000)
    assert not misplaced(editor.page.evaluate(PLACES))
    assert not editor.ours()


@pytest.mark.parametrize("name", [name for name, template in ALL.items() if template.models])
def test_missing_files_are_offered_with_their_addresses(editor, name):
    graph = workflows.editor(ALL[name])
    editor.load(graph)
    editor.page.wait_for_timeout(1500)
    assert any(
        "error" in text.lower() or "missing" in text.lower()
        for text in [*editor.toasts(), editor.page.inner_text("body")]
    )


def test_the_template_browser_lists_them(editor):
    editor.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    editor.page.wait_for_selector("[role=dialog] >> text=sana-nodes", timeout=30_000)
    editor.page.locator("[role=dialog] >> text=sana-nodes").first.click()
    editor.page.wait_for_timeout(1500)
    shown = editor.page.inner_text("body")
    assert "SANA-Sprint text to image" in shown
    editor.page.keyboard.press("Escape")
