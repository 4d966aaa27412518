"""card_comfyui.py for a test: one ComfyUI on a pretended card, and what its cases gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import card_cases
import pytest
import tiny
import torch

BOUND = 1e-4
"""Of latents, which are about 1, and of images in [0, 1]."""


ONCE = {"prompt": 800 * 48 * 4, "prompt of 8 bits": 2 * card_cases.WIDTH * 48}
"""Bytes of what is large in a small Gemma and stays where it is: the token table (1.2 GB in the published one), and two
of the nine products of 8 bits."""


def is_dynamic() -> bool:
    """Whether this ComfyUI has dynamic memory, and knows several cards: 0.33."""
    return (tiny.COMFYUI / "comfy" / "multigpu.py").is_file()


def keeps_packed() -> bool:
    """Whether this ComfyUI knows quantised weights: 0.8 and later."""
    return tiny.COMFYUI is not None and (tiny.COMFYUI / "comfy" / "quant_ops.py").is_file()


def results(home: Path, mode: str, names: list[str]) -> dict[str, dict]:
    """By case; skipped with the reason where a card cannot be pretended."""
    if torch.version.cuda is not None:
        pytest.skip("a build of torch for CUDA asks a real card")
    if mode.startswith("dynamic") and not is_dynamic():
        pytest.skip("this ComfyUI has no dynamic memory")
    program = Path(__file__).with_name("card_comfyui.py")
    command = [sys.executable, str(program), str(home), mode, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict, name: str) -> None:
    """The CPU's values."""
    assert "error" not in found, found.get("error")
    assert found["difference"] < card_cases.COARSE.get(name, BOUND), found["difference"]


def check_run(mode: str, found: dict[str, dict], name: str) -> None:
    """The CPU's values; and of a sampling with a model that is loaded whole what check_step says."""
    check(found[name], name)
    if mode == "full" and name in card_cases.SAMPLINGS:
        check_step(found[name], name)
    if mode == "dynamic:all" and name in ONCE:
        again = found[name]["again"]
        assert again < ONCE[name], f"large weights of Gemma were uploaded again: {again:,} bytes"


def check_step(asked: dict, name: str) -> None:
    """A step waits for nothing, moves SCM's noise alone and launches no more than is known."""
    assert not asked["waits"], asked["waits"]
    assert sum(asked["moves"].values()) <= 1 and all(card_cases.NOISE in site for site in asked["moves"]), asked[
        "moves"
    ]
    assert asked["launches"] <= card_cases.LAUNCHES[name], asked["launches"]
