"""ComfyUI's dtype flags over HTTP: float16 never reaches Gemma-2 or an autoencoder, and the log says so."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from server import Server

EVERY = ("--fp16-vae", "--fp16-text-enc")
FLAGS = {
    "force-fp16": ("--force-fp16", *EVERY),
    "fp16-unet": ("--fp16-unet", *EVERY),
    "fp8-unet": ("--fp8_e4m3fn-unet", "--fp8_e4m3fn-text-enc", "--bf16-vae"),
}
STORED = {"force-fp16": "float16", "fp16-unet": "float16", "fp8-unet": "float8_e4m3fn"}


@pytest.fixture(scope="module")
def plain(home, reference):
    with Server(home) as server:
        yield server.pictures(graphs.example())


@pytest.mark.parametrize("name", FLAGS)
def test_flags_give_the_picture_and_the_log_says_in_which_dtype(home, plain, video_references, name):
    with Server(home, *FLAGS[name]) as server:
        pictures = server.pictures(graphs.example())
        video = server.run(graphs.video())
        said = server.log.read_text()
    assert pictures.std() > 1 and video["status"]["status_str"] == "success"
    assert np.abs(pictures.astype(int) - plain).mean() < 8
    decoder = "bfloat16" if name == "fp8-unet" else "float32"
    assert "SANA's Gemma-2 computes in float32: float16 overflows in it" in said
    assert f"SANA's DC-AE computes in {decoder}: float16 overflows in it" in said
    assert "computes in float16" not in said
    assert f"SANA-Sprint computes in float32: it is stored in {STORED[name]}" in said
