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
    exported = editor.api()
    for node in exported.values():
        node.pop("_meta", None)
    wanted = {key: {k: v for k, v in node.items() if k != "_meta"} for key, node in ALL[name].graph.items()}
    assert exported == wanted


@pytest.mark.parametrize("name", [name for name, template in ALL.items() if template.demo])
def test_a_fresh_install_generates(editor, name):
    editor.errors.clear()
    editor.template(ALL[name].title)
    entry = editor.run(300)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["outputs"] and not editor.ours()


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
    editor.page.wait_for_selector("text=sana-nodes", timeout=15_000)
    editor.page.click("text=sana-nodes")
    editor.page.wait_for_timeout(1500)
    shown = editor.page.inner_text("body")
    assert "SANA-Sprint text to image" in shown
    editor.page.keyboard.press("Escape")
