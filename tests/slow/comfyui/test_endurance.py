"""A real ComfyUI that is used for long, over HTTP: memory stays, and interrupts leave nothing behind."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import drawing
import graphs
import pytest
import tiny
from server import Server

PROMPTS = 200
ROUND = 25
"""Prompts before resident memory is measured first: every kind of graph has run by then."""


@pytest.fixture(scope="module")
def server(home, reference, sana_reference):
    for number, name in enumerate(("one", "two")):
        tiny.write_lora(home / "models" / "loras" / f"{name}.safetensors", number)
    with Server(home) as running:
        yield running


def resident(server: Server) -> int:
    """Resident bytes of the server."""
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from Linux's /proc")
    said = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in said.splitlines() if line.startswith("VmRSS"))


def graph_of(number: int) -> dict:
    """The number'th of many graphs with changing models, LoRAs, sizes, dtypes and seeds."""
    rng = random.Random(number)
    width, height = rng.choice([(64, 64), (96, 64), (64, 160), (128, 128)])
    kind = number % 4
    if kind == 3:
        nodes = graphs.sana(seed=number)
    else:
        nodes = graphs.example(("tiny", "tiny", "sana-sprint-demo")[kind], seed=number)
    nodes["3"]["inputs"].update(width=width, height=height)
    if kind == 1:
        nodes["1"]["inputs"]["weight_dtype"] = rng.choice(["bf16", "fp32"])
    if kind != 2:
        chosen = rng.sample([("one.safetensors", 1.0), ("two.safetensors", 0.5)], rng.randrange(3))
        nodes = graphs.with_lora(nodes, *chosen)
    return nodes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc, which Linux has")
def test_two_hundred_prompts_leave_memory_where_it_was(server):
    before = 0
    for number in range(ROUND + PROMPTS):
        if number == ROUND:
            before = resident(server)
        entry = server.run(graph_of(number))
        assert entry["status"]["status_str"] == "success", entry["status"]
    after = resident(server)
    assert after < 1.03 * before, f"{before / 2**20:.0f} MiB grew to {after / 2**20:.0f} MiB in {PROMPTS} prompts"


def test_fifty_interrupts_leave_the_next_prompt_right(server):
    """At random moments of loading, encoding, patching, sampling and decoding; the prompt after each is checked."""
    checked = [
        graphs.with_lora(graphs.example(seed=1), ("one.safetensors", 1.0)),
        graphs.example(seed=2),
        graphs.with_lora(graphs.sana(seed=3), ("two.safetensors", 1.0)),
        graphs.sana(seed=4),
    ]
    expected = [server.pictures(graph) for graph in checked]
    rng, stopped = random.Random(0), 0
    for number in range(50):
        long = graphs.example(seed=100 + number, steps=300) if number % 2 else graphs.sana(seed=100 + number, steps=300)
        long["3"]["inputs"].update(width=128, height=128)
        prompt_id = server.queue(graphs.with_lora(long, ("one.safetensors", 0.5 + number / 100)))
        time.sleep(rng.random() * 0.8)
        server.post("/interrupt", {})
        messages = server.wait(prompt_id)["status"]["messages"]
        stopped += any(event == "execution_interrupted" for event, _ in messages)
        which = rng.randrange(len(checked))
        checked[which]["6"]["inputs"]["filename_prefix"] = f"after/{number}"
        assert drawing.same_pixels(server.pictures(checked[which]), expected[which]), (
            f"prompt {which} after interrupt {number}"
        )
    assert stopped > 25, f"only {stopped} of 50 runs were interrupted at all"
