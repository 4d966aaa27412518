"""Live previews: colours found from the VAE, and tsd."""

from __future__ import annotations

import random
import sys
import time

import drawing
import graphs
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.model_loaders.tiny_decoder import load_tiny_decoder
from sana_nodes.networks import previews
from server import Server
from torch.nn import functional

sys.path.insert(0, str(tiny.REPOSITORY / "demo"))

from language import all_scenes


def pooled(picture: torch.Tensor) -> torch.Tensor:
    """[H, W, 3] to one colour for each cell of the latent."""
    return functional.avg_pool2d(picture.movedim(-1, 0)[None], picture.shape[0] // 8)[0]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_the_map_of_the_demo_correlates_with_its_pictures(host, reference):
    parts = drawing.call("SanaLoadPipeline", pipeline="sana-sprint-demo")
    found = previews.fit_preview(parts[2].encode, 32)
    assert found == previews.fit_preview(parts[2].encode, 32), "the same VAE gave another map"
    factors, bias = torch.tensor(found.factors), torch.tensor(found.bias)
    seen, shown = [], []
    for seed, scene in enumerate(random.Random(3).sample(all_scenes(), 12)):
        positive = drawing.call("SanaEncodePrompt", clip=parts[1], text=scene.prompt)[0]
        empty = drawing.call("SanaEmptyLatent", width=256, height=256)[0]
        drawn = drawing.call("SanaSCMSample", model=parts[0], positive=positive, latent_image=empty, seed=seed)[0]
        preview = (drawn["samples"][0].movedim(0, -1) @ factors + bias).clamp(-1, 1) / 2 + 0.5
        seen.append(pooled(drawing.decode(parts[2], drawn)[0]))
        shown.append(preview.movedim(-1, 0))
    assert correlation(torch.stack(seen), torch.stack(shown)) > 0.9
    assert sorted(correlation(a, b) for a, b in zip(seen, shown))[len(seen) // 2] > 0.9


def test_another_vae_has_another_fingerprint():
    first, again, other = tiny.autoencoder(), tiny.autoencoder(), tiny.autoencoder(seed=9)
    assert previews.fingerprint(first) == previews.fingerprint(again) != previews.fingerprint(other)


CHANNELS = [32, 128, 128, 128, 128, 128, 128, 128, 64, 64, 64, 64, 32, 32]
UNFOLDS = [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1]


def tsd(seed: int = 0) -> dict:
    """Random weights in the layout of tsd.safetensors."""
    generator, tensors = torch.Generator().manual_seed(seed), {}

    def convolution(name, inputs, outputs, kernel):
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        tensors[f"{name}.weight"] = weight / (inputs * kernel**2) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1

    for number, (inputs, outputs, unfold) in enumerate(zip(CHANNELS, CHANNELS[1:], UNFOLDS)):
        convolution(f"{number}.conv_a", inputs, inputs, 3)
        convolution(f"{number}.conv_b", 2 * inputs, inputs, 3)
        convolution(f"{number}.conv_c", 3 * inputs, outputs * unfold**2, 3)
        convolution(f"{number}.conv_l", outputs * unfold**2, outputs * unfold**2, 1)
    convolution(str(len(UNFOLDS)), 32, 3, 3)
    return tensors


def by_layers(tensors: dict, latent: torch.Tensor) -> torch.Tensor:
    """tsd out of torch's own layers, one by one."""

    def layer(name, x):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        convolution = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[-1], padding="same")
        convolution.load_state_dict({"weight": weight, "bias": bias})
        return convolution(x)

    leaky, x = torch.nn.LeakyReLU(0.2), latent
    with torch.no_grad():
        for number, unfold in enumerate(UNFOLDS):
            a = leaky(layer(f"{number}.conv_a", x))
            b = leaky(layer(f"{number}.conv_b", torch.cat([a, x], 1)))
            c = leaky(layer(f"{number}.conv_c", torch.cat([b, a, x], 1)))
            x = torch.nn.PixelShuffle(unfold)(leaky(layer(f"{number}.conv_l", c)))
        return layer(str(len(UNFOLDS)), x)


def test_tsd_is_read_off_its_shapes(tmp_path):
    save_file(tsd(), tmp_path / "tsd.safetensors")
    latent = torch.randn(1, 32, 3, 2)
    drawn = load_tiny_decoder(tmp_path / "tsd.safetensors")(latent)
    assert drawn.shape == (1, 3, 24, 16) and drawn.std() > 0.01
    assert torch.allclose(drawn, by_layers(tsd(), latent), atol=1e-5)


def test_another_file_is_not_tsd(tmp_path):
    save_file({"0.conv_a.weight": torch.zeros(1)}, tmp_path / "tsd.safetensors")
    with pytest.raises(ValueError, match="is not tsd"):
        load_tiny_decoder(tmp_path / "tsd.safetensors")


@pytest.fixture(scope="module")
def server(home, reference):
    with Server(home, "--preview-method", "auto") as running:
        yield running


def last_preview(server, graph) -> torch.Tensor:
    server.previews.clear()
    server.pictures(graph)
    deadline = time.time() + 10
    while len(server.previews) < graph["4"]["inputs"]["steps"] and time.time() < deadline:
        time.sleep(0.1)
    assert len(server.previews) == graph["4"]["inputs"]["steps"], "a step without its preview"
    return torch.from_numpy(np.asarray(server.previews[-1])) / 255


@pytest.mark.comfyui
@pytest.mark.parametrize("core", [False, True], ids=["SanaSCMSample", "KSampler"])
def test_the_last_preview_shows_the_picture(server, core, home):
    make = graphs.with_ksampler if core else graphs.example
    graph = make(pipeline="sana-sprint-demo", width=256, height=256, seed=4)
    graph["4"]["inputs"]["steps"] = 1 if core else 2
    preview = last_preview(server, graph)
    final = torch.from_numpy(server.pictures(graph)[0]) / 255
    shown = functional.interpolate(preview.movedim(-1, 0)[None], size=(8, 8), mode="area")[0]
    assert correlation(pooled(final), shown) > 0.9
    assert (home / "user" / "sana-nodes" / "previews.json").is_file()


@pytest.mark.comfyui
def test_tsd_is_used_where_the_person_has_it(server, home):
    """On ComfyUI 0.8 and later: the preview has eight pixels a cell and tsd's colours."""
    graph = graphs.example(width=64, height=96, seed=3)
    graph["5"] = graphs.node("SaveLatent", samples=["4", 0], filename_prefix="latents/tsd")
    del graph["6"]
    (home / "models" / "vae_approx").mkdir(exist_ok=True)
    file = home / "models" / "vae_approx" / "tsd.safetensors"
    save_file(tsd(), file)
    try:
        server.previews.clear()
        entry = server.run(graph)
        assert entry["status"]["status_str"] == "success"
        time.sleep(0.5)
        preview = torch.from_numpy(np.asarray(server.previews[-1])) / 255
    finally:
        file.unlink()
    from safetensors.torch import load_file

    latent = load_file(sorted((home / "output" / "latents").glob("tsd*"))[-1])["latent_tensor"]
    expected = (by_layers(tsd(), latent / 0.41407)[0] / 2 + 0.5).clamp(0, 1)
    shown = functional.interpolate(preview.movedim(-1, 0)[None], size=expected.shape[1:], mode="area")[0]
    version = (tiny.COMFYUI / "comfyui_version.py").read_text()
    if '"0.3.' in version:
        pytest.skip("ComfyUI 0.3 lets no format change a latent before its preview, so tsd is not used there")
    assert correlation(expected, shown) > 0.9


def encoder_of(factors: torch.Tensor):
    """Latents [1, C, h, w] of images, from which ``factors`` [C, 3] give the colours back."""

    def encode(image):
        cells = functional.avg_pool2d(image.movedim(-1, 1) * 2 - 1, 8)
        return torch.einsum("bchw,cd->bdhw", cells, torch.linalg.pinv(factors))

    return encode


def test_a_map_that_explains_an_autoencoder_is_kept_and_another_is_not():
    factors = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    known = previews.PreviewMap(factors.tolist(), [0.0, 0.0, 0.0])
    assert previews.fit_preview(encoder_of(factors), 8, known) is known
    other = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    fitted = previews.fit_preview(encoder_of(other), 8, known)
    assert fitted != known
    assert previews.fit_preview(encoder_of(other), 8) == fitted


@pytest.mark.parametrize("frames,shown", [(1, 0), (2, 1), (3, 1), (21, 10)])
def test_a_video_shows_a_frame_that_moves(frames, shown):
    latent = torch.arange(float(frames)).view(1, 1, frames, 1, 1)
    assert previews.moving_frame(latent).flatten().tolist() == [shown]
