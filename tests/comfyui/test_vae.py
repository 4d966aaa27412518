"""SanaVAE keeps what ComfyUI and its nodes ask of a VAE, though it decodes and encodes by itself."""

from __future__ import annotations

import copy
import inspect
from contextlib import contextmanager

import drawing
import in_process
import pytest
import torch

KINDS = {"tiny": (2, 32, 3, 2), "tiny-video": (2, 16, 2, 8, 8), "tiny-video-ltx2": (2, 128, 2, 2, 2)}
"""Folders in models/diffusers, and the shape of a LATENT of their autoencoder."""


@pytest.fixture(scope="module")
def comfy(home, video_references):
    with in_process.comfyui(home):
        import comfy.model_management

        yield comfy.model_management


@pytest.fixture(scope="module", params=KINDS)
def vae(comfy, request):
    made = drawing.call("SanaLoadPipeline", pipeline=request.param)[2]
    made.vae_dtype = torch.float32  # on the CPU ComfyUI 0.3.64 chooses bfloat16
    return made


@pytest.fixture
def latent(vae):
    shape = next(shape for shape in KINDS.values() if shape[1] == vae.latent_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixels(vae, latent):
    return torch.rand(vae.decode(latent).shape, generator=torch.Generator().manual_seed(1))


def expected_images(vae, latent):
    """diffusers' own pass over the LATENT, in [0, 1]."""
    from sana_nodes.networks.autoencoder import to_autoencoder

    raw = to_autoencoder(vae.sana_spec, latent)
    with torch.no_grad():
        decoded = vae.first_stage_model.autoencoder.decode(raw, return_dict=False)[0]
    return (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)


@torch.inference_mode()
def test_a_batch_is_decoded_and_encoded_as_each_alone(vae, latent, pixels):
    assert drawing.difference(vae.decode(latent), expected_images(vae, latent)) < 1e-4
    alone = [torch.cat([half(one) for one in given.split(1)]) for half, given in halves(vae, latent, pixels)]
    for (half, given), each in zip(halves(vae, latent, pixels), alone):
        assert drawing.difference(half(given), each) < 1e-5


def halves(vae, latent, pixels):
    return (vae.decode, latent), (vae.encode, pixels)


@torch.inference_mode()
def test_what_is_given_stays_as_it_is(vae, latent, pixels):
    before = latent.clone(), pixels.clone()
    for half, given in halves(vae, latent, pixels):
        half(given)
    for half, given in ((vae.decode_tiled, latent), (vae.encode_tiled, pixels)):
        half(given, tile_x=64, tile_y=64, overlap=0)
    assert torch.equal(latent, before[0]) and torch.equal(pixels, before[1])


@torch.inference_mode()
def test_nodes_may_pass_what_comfys_own_take(vae, latent):
    import comfy.sd

    for name in ("decode", "encode", "decode_tiled", "encode_tiled"):
        theirs = inspect.signature(getattr(comfy.sd.VAE, name)).parameters
        ours = inspect.signature(getattr(type(vae), name))
        ours.bind(*(None for _ in theirs))
        ours.bind(**dict.fromkeys(theirs))
    options = {"vae_options": {"a": 1}}
    assert drawing.difference(vae.decode(latent, **options), vae.decode(latent)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_results_are_where_and_what_comfyui_keeps_between_nodes(comfy, vae, latent, pixels, monkeypatch, half):
    """ComfyUI 0.33 has --fp16-intermediates; before, all was float32."""
    wanted = torch.float32
    if half:
        if not hasattr(comfy, "intermediate_dtype"):
            pytest.skip("this ComfyUI keeps everything in float32")
        wanted = torch.float16
        monkeypatch.setattr(comfy.args, "fp16_intermediates", True)
    made = [half_of(given) for half_of, given in halves(vae, latent, pixels)]
    made += [vae.decode_tiled(latent, tile_x=2, tile_y=2, overlap=0)]
    made += [vae.encode_tiled(pixels, tile_x=64, tile_y=64, overlap=0)]
    assert [one.dtype for one in made] == [wanted] * 4
    assert {one.device for one in made} == {comfy.intermediate_device()}
    assert drawing.difference(made[0].float(), expected_images(vae, latent)) < 2e-3


@torch.inference_mode()
def test_an_image_vae_takes_a_latent_of_one_frame(comfy):
    vae, latent = drawing.call("SanaLoadVAE", vae_name="tiny")[0], torch.randn(KINDS["tiny"])
    for half, more in ((vae.decode, {}), (vae.decode_tiled, {"tile_x": 2, "tile_y": 2, "overlap": 0})):
        assert drawing.difference(half(latent[:, :, None], **more), half(latent, **more)) < 1e-5
        with pytest.raises(ValueError, match="the latent has the shape"):
            half(torch.stack([latent, latent], dim=2), **more)


@torch.inference_mode()
@pytest.mark.parametrize("error", ["OutOfMemoryError", "AcceleratorError"])
def test_every_way_in_which_a_device_runs_out_leads_to_tiles(comfy, vae, latent, pixels, monkeypatch, error):
    if error == "AcceleratorError" and not hasattr(comfy, "is_oom"):
        pytest.skip("this ComfyUI knows PyTorch's own error alone")
    expected = [half(given) for half, given in halves(vae, latent, pixels)]
    raised = fail_on_whole_passes(vae, monkeypatch, getattr(torch, error)("CUDA error: out of memory"))
    made = [half(given) for half, given in halves(vae, latent, pixels)]
    assert raised, "no pass over the whole was tried"
    if not vae.sana_spec.is_video:
        assert all(drawing.difference(a, b) < 1e-4 for a, b in zip(made, expected))
    assert [one.shape for one in made] == [one.shape for one in expected]


@torch.inference_mode()
def test_another_error_is_not_taken_for_too_little_memory(vae, latent, pixels, monkeypatch):
    raised = fail_on_whole_passes(vae, monkeypatch, RuntimeError("a bug"))
    for half, given in halves(vae, latent, pixels):
        with pytest.raises(RuntimeError, match="a bug"):
            half(given)
    assert len(raised) == 2


def fail_on_whole_passes(vae, monkeypatch, error) -> list:
    """Let what is not in tiles raise; returns what was tried."""
    from sana_nodes.networks import streaming

    raised = []

    def failing(true, tiles_of):
        def run(*args, **kwargs):
            if tiles_of(args, kwargs) is None:
                raised.append(true)
                raise error
            return true(*args, **kwargs)

        return run

    if not vae.sana_spec.is_video:
        for half in ("decode", "encode"):
            module = vae.first_stage_model.autoencoder
            monkeypatch.setattr(module, half, failing(getattr(module, half), lambda args, kwargs: None))
        return raised
    for name in ("decode_pieces", "encode_pieces"):
        true = getattr(streaming, name)
        bound = inspect.signature(true)
        monkeypatch.setattr(
            streaming, name, failing(true, lambda args, kwargs, b=bound: b.bind(*args, **kwargs).arguments["tiles"])
        )
    return raised


@torch.inference_mode()
def test_a_copy_on_another_device_computes_with_its_own_module(vae, latent, pixels):
    """SelectVAEDevice of ComfyUI 0.33 copies the VAE and gives the copy a module of its own."""
    other = copy.copy(vae)
    other.patcher = vae.patcher.clone()
    other.first_stage_model = copy.deepcopy(vae.first_stage_model)
    other.patcher.model = other.first_stage_model
    for parameter in other.first_stage_model.parameters():
        parameter.zero_()
    assert vae.decode(latent).std() > 1e-3 and other.decode(latent).std() < 1e-6
    assert vae.encode(pixels).std() > 1e-3
    assert other.encode(pixels).flatten(2).std(dim=2).max() < 1e-6


@torch.inference_mode()
def test_every_pass_runs_with_its_own_card_chosen(comfy, vae, latent, pixels, monkeypatch):
    if not hasattr(comfy, "cuda_device_context"):
        pytest.skip("this ComfyUI knows one card")
    inside, seen = [], []

    @contextmanager
    def context(device):
        inside.append(device)
        yield
        inside.pop()

    monkeypatch.setattr(comfy, "cuda_device_context", context)
    layers = [m for m in vae.first_stage_model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)]
    hooks = [layer.register_forward_pre_hook(lambda *_: seen.append(list(inside))) for layer in layers]
    try:
        for half, given in halves(vae, latent, pixels):
            half(given)
        vae.decode_tiled(latent, tile_x=2, tile_y=2, overlap=0)
        vae.encode_tiled(pixels, tile_x=64, tile_y=64, overlap=0)
        if vae.sana_spec.is_video:
            for piece in vae.frames(latent):
                assert not inside, "who takes the frames works on a card of its own"
                assert len(piece)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) > 10 and all(one == [vae.device] for one in seen)


@torch.inference_mode()
def test_nodes_that_take_the_first_stage_model_get_the_same(vae, latent, pixels):
    stage = vae.first_stage_model
    shown = (stage.decode(latent) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert drawing.difference(shown, vae.decode(latent)) < 1e-4
    assert drawing.difference(stage.encode(pixels.movedim(-1, 1) * 2 - 1), vae.encode(pixels)) < 1e-4


def test_what_comfyui_asks_a_vae_for_is_there(comfy, vae, latent):
    spec = vae.sana_spec
    assert vae.spacial_compression_decode() == vae.spacial_compression_encode() == spec.spatial_ratio
    assert vae.temporal_compression_decode() == (spec.temporal_ratio if spec.is_video else None)
    assert vae.latent_dim == (3 if spec.is_video else 2) and vae.output_channels == 3
    assert vae.memory_used_decode(latent.shape, torch.bfloat16) < vae.memory_used_decode(latent.shape, torch.float32)
    assert vae.throw_exception_if_invalid() is None and vae.get_sd().keys()
    assert not getattr(vae, "handles_tiling", False) and not vae.disable_offload
    size = sum(p.numel() * p.element_size() for p in vae.first_stage_model.parameters())
    assert size <= vae.size < 1.1 * size + 4096
    for name, answer in (("model_size", vae.size), ("get_ram_usage", vae.size), ("is_dynamic", False)):
        assert not hasattr(vae, name) or getattr(vae, name)() == answer
    if hasattr(vae, "prepare_decode"):
        assert vae.prepare_decode(latent.shape) >= 1
