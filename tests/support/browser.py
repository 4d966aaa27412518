"""ComfyUI's editor in a real Chromium, in classic and in Nodes 2.0 rendering.

Needs Playwright for Python (``pip install playwright``) and a Chromium: the one on the path, or CHROMIUM. Nothing but
the local server is reached. ``why_not()`` is the reason where it cannot run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path

import tiny
from server import Server

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
    "Comfy.Locale": "en",
    "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.WarnBlueprintOverwrite": False,
    "Comfy.Graph.CanvasInfo": False,
}
RENDERINGS = ("classic", "nodes2")
ADD = """([kind, values, at]) => {
    const node = LiteGraph.createNode(kind), count = app.graph._nodes.length;
    node.pos = at ?? [(count % 5) * 440, Math.floor(count / 5) * 520];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) {
        const widget = node.widgets.find(each => each.name === name);
        widget.value = value;
        widget.callback?.(value);
    }
    return node.id;
}"""


def chromium() -> str | None:
    """The browser's program."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def why_not() -> str | None:
    """What is missing for tests in a browser, or None."""
    if tiny.COMFYUI is None:
        return "COMFYUI_PATH names no ComfyUI checkout"
    if chromium() is None:
        return "there is no Chromium on the path, and CHROMIUM names none"
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is not installed: pip install playwright"
    return None


def add(page, kind: str, at: tuple[int, int] | None = None, **values) -> int:
    """The id of a node that is put on the page's canvas, beside the others or ``at`` a place, with these values."""
    return page.evaluate(ADD, [kind, values, at])


class Editor:
    """The editor's page over a running server; use as a context manager.

    ``rendering``: classic or nodes2. ``errors`` gathers what the page's console calls an error, and exceptions.
    """

    def __init__(self, server: Server, rendering: str = "classic", size: tuple[int, int] = (1600, 900), **settings):
        self.server, self.size, self.errors = server, size, []
        self.settings = {**SETTINGS, "Comfy.VueNodes.Enabled": rendering == "nodes2", **settings}

    def __enter__(self) -> Editor:
        from playwright.sync_api import sync_playwright

        self.server.post("/settings", self.settings)
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.playwright = sync_playwright().start()
        self.context = self.playwright.chromium.launch_persistent_context(
            self.profile.name,
            executable_path=chromium(),
            args=FLAGS,
            viewport={"width": self.size[0], "height": self.size[1]},
        )
        self.context.route("**/*", self._only_here)
        self.page = self.context.pages[0] if self.context.pages else self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()
        self.errors.clear()  # of the page's own start: files that a new user does not have yet
        return self

    def __exit__(self, *_):
        self.context.close()
        self.playwright.stop()
        self.profile.cleanup()

    def _only_here(self, route):
        here = f"127.0.0.1:{self.server.port}"
        local = here in route.request.url or route.request.url.startswith(("data:", "blob:"))
        return route.continue_() if local else route.abort()

    def _heard(self, message):
        elsewhere = message.location.get("url", "")
        if message.type == "error" and (not elsewhere or f":{self.server.port}" in elsewhere):
            self.errors.append(f"{message.text} ({elsewhere})")

    def ours(self) -> list[str]:
        """Of the errors, those that come from this pack or may: not the page's own look-ups on the network."""
        elsewhere = ("Content Security Policy", "Fetch API cannot load", "api.comfy.org")
        own = [text for text in self.errors if not any(part in text for part in elsewhere)]
        return [text for text in own if "sana" in text.lower() or "TypeError" in text]

    def open(self) -> None:
        """Load the page and wait for the editor."""
        self.page.goto(f"http://127.0.0.1:{self.server.port}/", wait_until="domcontentloaded")
        self.page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=60_000)
        self.page.wait_for_function("Object.keys(LiteGraph.registered_node_types).length > 100", timeout=60_000)
        self.page.wait_for_timeout(1000)

    def load(self, workflow: dict) -> None:
        """A workflow of the editor's format onto the canvas."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(500)

    def template(self, name: str, pack: str = "sana-nodes") -> None:
        """One of a pack's templates, through the route that the template browser uses."""
        path = f"/api/workflow_templates/{pack}/{urllib.request.quote(name)}.json"
        self.load(json.loads(self.server.get(path)))

    def clear(self) -> None:
        self.page.evaluate("app.graph.clear()")

    def fit(self) -> None:
        """Show the whole graph."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(800)

    def api(self) -> dict:
        """The graph in API format, as Export (API) saves it."""
        return self.page.evaluate("app.graphToPrompt().then(made => made.output)")

    def run(self, seconds: float = 120) -> dict:
        """Press Run and wait: the newest entry of the history."""
        before = set(json.loads(self.server.get("/history")))
        self.page.evaluate("app.queuePrompt(0)")
        return self.finished(before, seconds)

    def finished(self, before: set[str], seconds: float) -> dict:
        """Wait for an entry of the history that was not there ``before``."""
        deadline = time.time() + seconds
        while time.time() < deadline:
            history = json.loads(self.server.get("/history"))
            if new := [key for key in history if key not in before]:
                self.page.wait_for_timeout(500)
                return history[new[-1]]
            self.page.wait_for_timeout(200)
        raise TimeoutError(f"no result after {seconds} s: {self.toasts()}")

    def toasts(self) -> list[str]:
        """What the page's messages and dialogs say."""
        return self.page.eval_on_selector_all(".p-toast-message, .p-dialog", "all => all.map(e => e.innerText)")

    def drop(self, file: Path, x: int = 800, y: int = 450) -> None:
        """Drop a file on the canvas."""
        import base64

        data = base64.b64encode(file.read_bytes()).decode()
        kinds = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4", ".webm": "video/webm"}
        script = """([data, name, type, x, y]) => {
            const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type}));
            const target = document.elementFromPoint(x, y);
            for (const kind of ["dragenter", "dragover", "drop"])
                target.dispatchEvent(new DragEvent(kind, {
                    dataTransfer: transfer, bubbles: true, cancelable: true, clientX: x, clientY: y}));
        }"""
        kind = kinds.get(file.suffix, "application/octet-stream")
        self.page.evaluate(script, [data, file.name, kind, x, y])
        self.page.wait_for_timeout(1500)

    def picture(self, path: Path) -> Path:
        """A screenshot."""
        self.page.screenshot(path=str(path))
        return path
