"""A fresh install in a real ComfyUI, and the editor on it in each rendering."""

from __future__ import annotations

import browser
import fresh
import pytest
from server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(fresh.home(tmp_path_factory.mktemp("fresh"))) as running:
        yield running


@pytest.fixture(scope="module", params=browser.RENDERINGS)
def editor(server, request):
    with browser.Editor(server, request.param) as opened:
        yield opened
