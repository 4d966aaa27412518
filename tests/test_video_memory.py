"""Length costs no memory beyond the frames themselves: peaks of whole processes, on both hosts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny
import torch

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import conftest, drawing, torch
from sana_nodes import host as hosts

name, home, folder, what, latent_frames = sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6])
if name == "comfyui":
    conftest.start_comfyui(home)
here = hosts.use(name)
if name == "embedded":
    here.folders.models, here.folders.output = [home / "models"], home / "output"
vae = drawing.call("SanaLoadVAE", vae_name=folder)[0]
ratio, channels, sides = (8, 16, (32, 32)) if folder == "memory-wan" else (32, 128, (64, 64))

def run(latent_frames):
    latent = torch.randn(1, channels, latent_frames, sides[0] // ratio, sides[1] // ratio)
    if what == "decode":
        return vae.decode(latent).shape[1]
    given = {"samples": {"samples": latent}, "vae": vae, "filename_prefix": "memory/clip"}
    Path(drawing.call("SanaDecodeSaveVideo", **given)["result"][0]).unlink()

def peak():
    import platforms
    return platforms.peak_memory()

with torch.inference_mode():
    run(3)
    before = peak()
    print(run(latent_frames), peak() - before)
"""
NOISE = 4 << 20
"""Bytes that peaks may differ by from run to run."""

FRAME = {"memory-wan": 32 * 32 * 3 * 4, "memory-ltx2": 64 * 64 * 3 * 4}

PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
"""glibc gives memory back at once, so that a peak is what was held and not what was fragmented."""


@pytest.fixture(scope="module")
def vaes(home):
    for name, module in (("memory-wan", tiny.wan_vae()), ("memory-ltx2", tiny.ltx2_vae())):
        module.to(torch.float32).save_pretrained(home / "models" / "vae" / name)


@pytest.fixture(params=["embedded", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def peak(request, home, vaes):
    """Frames, and bytes beyond a short run's peak, of a process that decodes, or decodes and saves, latent frames."""

    def measured(folder: str, what: str, latent_frames: int) -> tuple[int, int]:
        tests = str(tiny.REPOSITORY / "tests")
        command = [sys.executable, "-c", PROGRAM, tests, request.param, str(home), folder, what, str(latent_frames)]
        environment = {**os.environ, **PLAIN_MALLOC}
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        count, more = done.stdout.split()[-2:]
        return 0 if count == "None" else int(count), int(more)

    return measured


@pytest.mark.parametrize("folder,ratio", [("memory-wan", 4), ("memory-ltx2", 8)])
def test_decoding_takes_the_frames_and_no_more(peak, folder, ratio):
    short, short_peak = peak(folder, "decode", 40 // ratio + 1)
    long, long_peak = peak(folder, "decode", 640 // ratio + 1)
    assert (short, long) == (41, 641)
    allowed = 1.15 * short_peak + (long - short) * FRAME[folder] + NOISE
    assert (long - short) * FRAME[folder] > NOISE, "a second copy of the frames would show"
    assert long_peak < allowed, f"{long_peak:,} against {allowed:,}"


@pytest.mark.parametrize("folder,ratio", [("memory-wan", 4), ("memory-ltx2", 8)])
def test_decoding_into_a_file_takes_no_more_for_a_minute(peak, folder, ratio):
    _, short = peak(folder, "save", 80 // ratio + 1)
    _, long = peak(folder, "save", 960 // ratio + 1)
    assert 880 * FRAME[folder] > NOISE, "frames that are kept would show"
    assert long < 1.15 * short + NOISE, f"{long:,} against {short:,}"
