"""Big images in ComfyUI: VAEDecodeTiled, VAEEncodeTiled, and what happens when the device runs out of memory."""

from __future__ import annotations

import drawing
import in_process
import pytest
import torch
from sana_nodes.networks import tiling

LATENT = torch.randn(2, 32, 5, 7, generator=torch.Generator().manual_seed(0))
IMAGE = torch.rand(2, 170, 230, 3, generator=torch.Generator().manual_seed(1))
"""Sides that 32 does not divide: 160 x 224 are left."""


@pytest.fixture(scope="module")
def vae(home, reference):
    with in_process.comfyui(home):
        yield drawing.call("SanaLoadVAE", vae_name="tiny")[0]


@pytest.fixture
def exact(vae, monkeypatch):
    """The VAE in float32: on the CPU ComfyUI 0.3.64 chooses bfloat16 for it."""
    monkeypatch.setattr(vae, "vae_dtype", torch.float32)
    return vae


@pytest.fixture
def sides(monkeypatch):
    """The tiles that passes are made with: pixels on a side."""
    made = []
    true = tiling.Tiling._through

    def through(self, *args):
        made.append(self.side)
        return true(self, *args)

    monkeypatch.setattr(tiling.Tiling, "_through", through)
    return made


@pytest.fixture
def asked(monkeypatch):
    """The bytes that ComfyUI is asked to keep free."""
    import comfy.model_management

    sizes, true = [], comfy.model_management.load_models_gpu

    def load(models, memory_required=0, **more):
        sizes.append(memory_required)
        return true(models, memory_required=memory_required, **more)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    return sizes


@torch.inference_mode()
@pytest.mark.parametrize("tile,overlap", [(2, 0), (3, 8), (64, 16), (2, 2)], ids=str)
def test_core_nodes_for_tiles_give_the_same_pixels_and_latents(exact, sides, tile, overlap):
    """Overlaps are not used, so one as large as its tile is no harm either."""
    decoded = exact.decode_tiled(LATENT, tile_x=tile, tile_y=tile, overlap=overlap, tile_t=None, overlap_t=None)
    assert decoded.shape == (2, 160, 224, 3) and decoded.dtype == torch.float32
    assert drawing.difference(decoded, exact.decode(LATENT)) < 1e-4
    encoded = exact.encode_tiled(IMAGE, tile_x=tile * 32, tile_y=tile * 32, overlap=overlap * 32)
    assert encoded.shape == (2, 32, 5, 7)
    assert drawing.difference(encoded, exact.encode(IMAGE)) < 1e-4
    assert sides == [tile * 32] * 4, "two images, there and back"


@torch.inference_mode()
def test_running_out_of_memory_falls_back_to_tiles_of_1024_pixels(exact, sides, monkeypatch):
    """The pass over the first whole image raises PyTorch's own error; from then on the batch goes through tiles."""
    pixels, latents = exact.decode(LATENT), exact.encode(IMAGE)
    failed = []

    def fail(*args, **kwargs):
        failed.append(args)
        raise torch.cuda.OutOfMemoryError("out of memory")

    for half in ("decode", "encode"):
        monkeypatch.setattr(exact.first_stage_model.autoencoder, half, fail)
    assert drawing.difference(exact.decode(LATENT), pixels) < 1e-4
    assert drawing.difference(exact.encode(IMAGE), latents) < 1e-4
    assert len(failed) == 2 and sides == [1024] * 4


@torch.inference_mode()
def test_what_the_device_cannot_hold_goes_into_tiles_at_once(exact, sides, monkeypatch):
    import comfy.model_management

    pixels, latents = exact.decode(LATENT), exact.encode(IMAGE)
    assert not sides
    needed = [exact.memory_used_decode((1, 32, 5, 7), torch.float32)]
    needed.append(exact.memory_used_encode((1, 3, 160, 224), torch.float32))
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: min(needed) - 1)
    assert drawing.difference(exact.decode(LATENT), pixels) < 1e-4
    assert drawing.difference(exact.encode(IMAGE), latents) < 1e-4
    assert len(sides) == 4 and max(sides) < 160, "one tile as large as the image would not fit either"


@torch.inference_mode()
def test_memory_is_asked_for_a_tile_and_not_for_the_image(exact, asked):
    large = torch.randn(1, 32, 20, 16)
    exact.decode(large)
    exact.decode_tiled(large, tile_x=2, tile_y=2, overlap=1)
    exact.encode(torch.rand(1, 640, 512, 3))
    exact.encode_tiled(torch.rand(1, 640, 512, 3), tile_x=64, tile_y=64, overlap=32)
    whole, tile, whole_encode, tile_encode = asked
    assert 0 < tile < whole / 3 and 0 < tile_encode < whole_encode / 3


@torch.inference_mode()
def test_an_interrupt_stops_after_the_tile(exact):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            exact.decode_tiled(LATENT, tile_x=2, tile_y=2, overlap=1)
    finally:
        comfy.model_management.interrupt_current_processing(False)


@torch.inference_mode()
def test_progress_is_shown_for_tiles(exact, monkeypatch):
    """ComfyUI 0.33 leaves out what comes too soon after the last."""
    import comfy.utils

    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *more, **named: shown.append((done, total))
    )
    exact.decode_tiled(LATENT, tile_x=2, tile_y=2, overlap=1)
    assert 2 < len(shown) <= shown[-1][1] and shown[-1][0] == shown[-1][1]


@torch.inference_mode()
def test_progress_goes_from_nothing_to_all_once_for_a_batch(exact, monkeypatch):
    import comfy.utils

    told = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda bar, done, total: told.append((done, total)))
    exact.decode_tiled(LATENT, tile_x=2, tile_y=2, overlap=1)
    (total,) = {total for _, total in told}
    assert [done for done, _ in told] == list(range(1, total + 1)) and total > 20


@pytest.mark.parametrize("half", ["encode", "encode_tiled"])
def test_an_image_of_less_than_a_cell_is_refused_in_words(vae, half):
    with pytest.raises(ValueError, match="the image is 20 pixels on a side; DC-AE needs at least 32"):
        getattr(vae, half)(torch.rand(1, 20, 64, 3))
    with pytest.raises(ValueError, match=r"the latent has the shape \[1, 4, 8, 8\]"):
        vae.decode_tiled(torch.zeros(1, 4, 8, 8))
