"""What the pack adds to the start of ComfyUI's editor: bytes, and the time of the page's thread."""

from __future__ import annotations

import statistics
import sys
import urllib.parse

import browser
import fresh
import pytest
from server import Server

pytestmark = pytest.mark.skipif(browser.why_not() is not None, reason=str(browser.why_not()))

ROOM = 100_000
"""Bytes of scripts, tables and blueprints. The texts are apart: ComfyUI serves those of every language together."""

TIME = 0.050
"""Seconds of the page's own thread."""

TEXTS = 450_000
"""Bytes of the texts of four languages, as ComfyUI serves them: letters other than ASCII take six bytes each."""


def test_what_the_pack_adds_to_the_start(server, tmp_path_factory):
    """Bytes of ours that the page fetches when it starts, and the time of its thread with and without the pack."""
    with Server(fresh.home(tmp_path_factory.mktemp("bare"), with_pack=False)) as bare:
        texts = len(server.get("/i18n")) - len(bare.get("/i18n"))
        spent = {True: [], False: []}
        fetched: dict[str, int] = {}
        with browser.Editor(server) as editor:
            bare.post("/settings", editor.settings)
            session = editor.context.new_cdp_session(editor.page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            editor.page.on("response", lambda answer: note(fetched, answer))
            for running in (bare, server):  # what the browser keeps of each
                open_on(editor, running)
            for _ in range(9):
                for running, mine in ((server, True), (bare, False)):
                    open_on(editor, running)
                    spent[mine].append(thread_time(session))
    pairs = [one - other for one, other in zip(spent[True], spent[False])]
    added = min(statistics.median(pairs), min(spent[True]) - min(spent[False]))
    sys.stdout.write(
        f"start: {added * 1000:.0f} ms of the page's thread, {sum(fetched.values())} bytes, {texts} of texts\n"
    )
    assert sum(fetched.values()) < ROOM and any("sana.js" in url for url in fetched)
    assert len([path for path in fetched if "/global_subgraphs/" in path]) == 3
    assert added < TIME, spent
    assert texts < TEXTS


def open_on(editor, running) -> None:
    """Open the page of one of the servers: in turn, so that what else the machine does is beside both."""
    editor.server = running
    editor.open()


def note(fetched: dict[str, int], answer) -> None:
    """Keep the size of what is ours."""
    path = urllib.parse.urlparse(answer.url).path
    blueprint = "/global_subgraphs/" in path and b"custom_nodes.sana-nodes" in answer.body()
    if blueprint or "/extensions/sana-nodes/" in path:
        fetched[path] = len(answer.body())


def thread_time(session) -> float:
    """Seconds that the page's thread computed since the page was opened, whatever else the machine did."""
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]
