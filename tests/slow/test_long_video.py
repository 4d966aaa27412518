"""A minute of video at a small size: memory and time do not grow."""

from __future__ import annotations

import statistics
import sys
import time

import long_films as films
import pytest
import tiny
from sana_nodes import host as hosts
from sana_nodes.nodes import long_video

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))  # last: it has a graphs.py as support has

from tracing import traced_peak

TEN = {"block_frames": 10}


@pytest.fixture
def parts(home, long_folder):
    chosen = hosts.use("embedded")
    chosen.folders.models, chosen.folders.output = [home / "models"], home / "output"
    yield films.load()
    hosts._current = None


def test_961_frames_take_the_memory_of_161(parts):
    positive = films.prompt(parts)
    short, long = (traced_peak(lambda count=count: films.saved(parts, positive, count, **TEN)) for count in (161, 961))
    assert abs(long / short - 1) < 0.05, (short, long)


def test_blocks_take_the_same_time(parts, monkeypatch):
    positive, times = films.prompt(parts), []
    sampled = long_video.LongVideo._sampled

    def timed(self, *given):
        began = time.perf_counter()
        latent = sampled(self, *given)
        times.append(time.perf_counter() - began)
        return latent

    monkeypatch.setattr(long_video.LongVideo, "_sampled", timed)
    films.saved(parts, positive, 961, width=64, height=64, **TEN)
    first, last = statistics.median(times[1:9]), statistics.median(times[-8:])
    assert abs(last / first - 1) < 0.1, (first, last)
