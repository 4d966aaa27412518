"""Length costs no memory beyond the frames themselves: peaks of whole processes, on both hosts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny
import torch

PROGRAM = """
import resource, sys
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
ratio, channels = (8, 16) if folder == "memory-wan" else (32, 128)
sides = {"decode": (192, 320), "save": (64, 96)}[what]
latent = torch.randn(1, channels, latent_frames, sides[0] // ratio, sides[1] // ratio)
with torch.inference_mode():
    if what == "decode":
        frames = vae.decode(latent)
        count = frames.shape[1]
    else:
        given = {"samples": {"samples": latent}, "vae": vae, "filename_prefix": "memory/clip"}
        path = drawing.call("SanaDecodeSaveVideo", **given)["result"][0]
        Path(path).unlink()
        count = 0
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def vaes(home):
    for name, module in (("memory-wan", tiny.wan_vae()), ("memory-ltx2", tiny.ltx2_vae())):
        module.to(torch.float32).save_pretrained(home / "models" / "vae" / name)


@pytest.fixture(params=["embedded", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def peak(request, home, vaes):
    """Frames and peak bytes of a process that decodes, or decodes and saves, so many latent frames."""

    def measured(folder: str, what: str, latent_frames: int) -> tuple[int, int]:
        tests = str(tiny.REPOSITORY / "tests")
        command = [sys.executable, "-c", PROGRAM, tests, request.param, str(home), folder, what, str(latent_frames)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        count, bytes_ = done.stdout.split()[-2:]
        return int(count), int(bytes_)

    return measured


@pytest.mark.parametrize("folder,ratio", [("memory-wan", 4), ("memory-ltx2", 8)])
def test_decoding_takes_the_frames_and_no_more(peak, folder, ratio):
    short, short_peak = peak(folder, "decode", 40 // ratio + 1)
    long, long_peak = peak(folder, "decode", 160 // ratio + 1)
    assert (short, long) == (41, 161)
    frame = 192 * 320 * 3 * 4
    assert long_peak < 1.15 * short_peak + (long - short) * frame, f"{long_peak:,} against {short_peak:,}"


@pytest.mark.parametrize("folder,ratio", [("memory-wan", 4), ("memory-ltx2", 8)])
def test_decoding_into_a_file_takes_no_more_for_a_minute(peak, folder, ratio):
    _, short = peak(folder, "save", 80 // ratio + 1)
    _, long = peak(folder, "save", 960 // ratio + 1)
    assert long < 1.15 * short, f"{long:,} against {short:,}"
