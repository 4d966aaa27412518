"""Length costs no memory beyond the frames themselves: peaks of one process, on both hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tiny

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import drawing, in_process, torch
from sana_nodes import host as hosts

name, home, lengths = sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
if name == "comfyui":
    in_process.start_comfyui(home)
here = hosts.use(name)
if name == "embedded":
    here.folders.models, here.folders.output = [home / "models"], home / "output"

def run(vae, folder, what, latent_frames):
    latent = torch.randn(1, *((16, latent_frames, 4, 4) if folder == "memory-wan" else (128, latent_frames, 2, 2)))
    if what == "decode":
        return vae.decode(latent).shape[1]
    given = {"samples": {"samples": latent}, "vae": vae, "filename_prefix": "memory/clip"}
    Path(drawing.call("SanaDecodeSaveVideo", **given)["result"][0]).unlink()

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def measured(*what):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    return run(*what), status("VmHWM") - before

def of(folder):
    vae = drawing.call("SanaLoadVAE", vae_name=folder)[0]
    for what in lengths[folder]:
        run(vae, folder, what, 3)
    return {what: [measured(vae, folder, what, n) for n in pair] for what, pair in lengths[folder].items()}

with torch.inference_mode():
    print(json.dumps({folder: of(folder) for folder in lengths}))
"""
NOISE = 4 << 20
"""Bytes that peaks may differ by from run to run."""

FRAME = {"memory-wan": 32 * 32 * 3 * 4, "memory-ltx2": 64 * 64 * 3 * 4}
RATIO = {"memory-wan": 4, "memory-ltx2": 8}
"""By the VAE's folder: bytes of a decoded frame, and frames to one of the latent."""

PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
"""glibc gives memory back at once, so that a peak is what was held and not what was fragmented."""


LENGTHS = {"decode": (41, 641), "save": (81, 961)}
"""Frames of a short and of a long video: those between them weigh more than NOISE."""


@pytest.fixture(scope="module", params=["embedded", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def measured(request, home) -> dict[str, dict[str, list]]:
    """By folder and by what is done: frames and bytes at the peak, of a short and of a long video."""
    if not sys.platform.startswith("linux"):
        pytest.skip("a peak is reset in Linux's /proc")
    small = {"num_res_blocks": 1, "dim_mult": [1, 1, 1, 1]}
    for name, module in (("memory-wan", tiny.wan_vae(**small)), ("memory-ltx2", tiny.ltx2_vae())):
        module.save_pretrained(home / "models" / "vae" / name)
    latent = {
        folder: {what: [(frames - 1) // ratio + 1 for frames in pair] for what, pair in LENGTHS.items()}
        for folder, ratio in RATIO.items()
    }
    support = str(tiny.REPOSITORY / "tests" / "support")
    command = [sys.executable, "-c", PROGRAM, support, request.param, str(home), json.dumps(latent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, **PLAIN_MALLOC})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("folder", FRAME)
def test_decoding_takes_the_frames_and_no_more(measured, folder):
    (short, short_peak), (long, long_peak) = measured[folder]["decode"]
    assert (short, long) == LENGTHS["decode"]
    allowed = 1.15 * short_peak + (long - short) * FRAME[folder] + NOISE
    assert (long - short) * FRAME[folder] > NOISE, "a second copy of the frames would show"
    assert long_peak < allowed, f"{long_peak:,} against {allowed:,}"


@pytest.mark.parametrize("folder", FRAME)
def test_decoding_into_a_file_takes_no_more_for_a_minute(measured, folder):
    (_, short), (_, long) = measured[folder]["save"]
    assert (LENGTHS["save"][1] - LENGTHS["save"][0]) * FRAME[folder] > NOISE, "frames that are kept would show"
    assert long < 1.15 * short + NOISE, f"{long:,} against {short:,}"
