"""DC-AE in windows gives what it gives as a whole: every layout, every size, and no seams on the demo VAE."""

from __future__ import annotations

import big_images
import drawing
import pytest
import tiny
import torch
from sana_nodes.networks.tiling import Tiling

LAYOUTS = {
    "sana": {},
    "shuffles": {"downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"},
    "empty first stage": {
        "encoder_layers_per_block": (0, 2, 1, 1, 1, 1),
        "decoder_layers_per_block": (0, 2, 1, 1, 1, 1),
    },
    "no attention": {
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_out_shortcut": False,
        "decoder_in_shortcut": False,
    },
}


def windows(side: int, **more) -> Tiling:
    return Tiling(side, torch.device("cpu"), torch.float32, **more)


@torch.no_grad()
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize(
    "rows,columns,side",
    [(6, 5, 64), (6, 5, 96), (2, 9, 64), (1, 3, 32), (3, 3, 16), (1, 1, 1024)],
    ids=["even", "odd", "strip", "one row", "less than a cell", "all in one"],
)
def test_windows_give_what_the_whole_gives(layout, rows, columns, side):
    autoencoder = tiny.autoencoder(**LAYOUTS[layout])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 32, rows, columns, generator=generator)
    pixels = torch.rand(2, 3, rows * 32, columns * 32, generator=generator) * 2 - 1
    whole, tiled = autoencoder.decode(latents).sample, windows(side).decode(autoencoder, latents)
    assert tiled.shape == whole.shape and (tiled - whole).abs().max() < 3e-5 * whole.abs().max()
    whole, tiled = autoencoder.encode(pixels).latent, windows(side).encode(autoencoder, pixels)
    assert tiled.shape == whole.shape and (tiled - whole).abs().max() < 3e-5 * whole.abs().max()


@pytest.fixture(scope="module")
def thousand():
    """The trained demo VAE; 1024 x 1024 pixels, their latents, and both there and back as a whole."""
    autoencoder, pixels = big_images.demo_autoencoder(), big_images.image(1024)
    with torch.no_grad():
        latents = autoencoder.encode(pixels).latent
        return autoencoder, pixels, latents, autoencoder.decode(latents).sample


@torch.no_grad()
def test_a_thousand_pixels_have_no_seams(thousand):
    """There and back in tiles of 512 pixels (2048 pixels: tests/slow/test_tiles.py; 4096: benchmarks/tiles.py)."""
    autoencoder, pixels, _, whole = thousand
    tiled = windows(512).decode(autoencoder, windows(512).encode(autoencoder, pixels))
    assert big_images.seam(tiled, whole) < 0.1


@torch.no_grad()
def test_the_seam_measure_sees_seams(thousand):
    """diffusers' own tiles, which know nothing of each other, stand out in the same measure."""
    autoencoder, _, latents, whole = thousand
    autoencoder.enable_tiling(512, 512, 448, 448)
    try:
        assert big_images.seam(autoencoder.decode(latents).sample, whole) > 2
    finally:
        autoencoder.disable_tiling()


@torch.no_grad()
def test_report_counts_every_window_and_may_stop():
    autoencoder, seen = tiny.autoencoder(), []
    windows(64, report=lambda done, total: seen.append((done, total))).decode(autoencoder, torch.randn(2, 32, 4, 4))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and {total for _, total in seen} == {len(seen)}

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        windows(64, report=stop).encode(autoencoder, torch.rand(1, 3, 128, 128))


@torch.no_grad()
def test_bfloat16_differs_no_more_than_bfloat16_does():
    """Sums over windows are rounded otherwise; that is far from 2 of 255 in the mean."""
    autoencoder, latents = tiny.autoencoder().to(torch.bfloat16), torch.randn(1, 32, 6, 6)
    whole = autoencoder.decode(latents.bfloat16()).sample.float()
    exact = tiny.autoencoder().decode(latents).sample
    tiled = Tiling(64, torch.device("cpu"), torch.bfloat16).decode(autoencoder, latents)
    assert tiled.dtype == torch.float32
    assert (tiled - exact).abs().mean() < 1.2 * (whole - exact).abs().mean()


@torch.no_grad()
def test_the_embedded_host_falls_back_to_windows(home, reference, monkeypatch):
    """The pass over the whole picture raises PyTorch's own error."""
    from sana_nodes import host as hosts

    hosts.use("embedded").folders.models = [home / "models"]
    vae = drawing.call("SanaLoadVAE", vae_name="tiny")[0]
    hosts._current = None
    latents, pixels = torch.randn(2, 32, 3, 2), torch.rand(1, 70, 96, 3)
    expected = vae.decode(latents), vae.encode(pixels)
    sides, true = [], Tiling._through
    monkeypatch.setattr(Tiling, "_through", lambda self, *args: (sides.append(self.side), true(self, *args))[1])

    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("out of memory")

    for half in ("decode", "encode"):
        monkeypatch.setattr(vae.autoencoder.module, half, fail)
    for got, wanted in zip((vae.decode(latents), vae.encode(pixels)), expected):
        assert got.dtype == torch.float32 and drawing.difference(got, wanted) < 1e-4
    assert sides == [1024, 1024, 1024]
