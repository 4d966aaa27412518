"""Our modules under ComfyUI's memory management, in-process."""

from __future__ import annotations

import inspect
import sys

import drawing
import filming
import in_process
import pytest
import tiny
import torch

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))  # last: it has a graphs.py as support has

import memory as benchmark
from tracing import traced_peak


@pytest.fixture(scope="module")
def parts(home, reference):
    with in_process.comfyui(home):
        yield drawing.call("SanaLoadPipeline", pipeline="tiny")


def modules_of(parts):
    model, clip, vae = parts
    return model.model.diffusion_model, clip.cond_stage_model.gemma, vae.first_stage_model.autoencoder


def test_layers_carry_comfys_operations(parts):
    import comfy.ops

    for module in modules_of(parts):
        layers = [m for m in module.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
        assert len(layers) > 5
        assert all(isinstance(layer, comfy.ops.CastWeightBiasOp) for layer in layers)
        of_text = hasattr(module, "embed_tokens")  # ComfyUI itself makes every text encoder's layers cast
        assert of_text or not any(layer.comfy_cast_weights for layer in layers), "stored as it is computed in"


@pytest.mark.parametrize("budget", [1, 60_000, 200_000], ids=["novram", "lowvram", "most"])
def test_a_model_loaded_in_part_draws_the_same(parts, budget):
    """What --novram and --lowvram do on a card, with the CPU as the card: comfy refuses them beside --cpu."""
    expected = drawing.ours(parts, "a red ring")
    cpu = torch.device("cpu")
    for patcher in (parts[0], parts[1].patcher, parts[2].patcher):
        patcher.unpatch_model(cpu)
        patcher.load(cpu, lowvram_model_memory=budget)
        assert patcher.model.model_lowvram
    try:
        assert drawing.difference(drawing.ours(parts, "a red ring"), expected) < drawing.ROUNDING
    finally:
        for patcher in (parts[0], parts[1].patcher, parts[2].patcher):
            patcher.detach()


@pytest.mark.parametrize("name", ["tiny-video", "tiny-video-ltx2"])
@pytest.mark.parametrize("budget", [1, 60_000], ids=["novram", "lowvram"])
def test_a_video_model_loaded_in_part_gives_the_same(parts, video_references, name, budget):
    video = drawing.call("SanaLoadPipeline", pipeline=name)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    expected = filming.ours(video, image)
    cpu = torch.device("cpu")
    for patcher in (video[0], video[1].patcher, video[2].patcher):
        patcher.unpatch_model(cpu)
        patcher.load(cpu, lowvram_model_memory=budget)
        assert patcher.model.model_lowvram
    try:
        assert drawing.difference(filming.ours(video, image), expected) < drawing.ROUNDING
    finally:
        for patcher in (video[0], video[1].patcher, video[2].patcher):
            patcher.detach()


def test_every_convolution_of_a_video_model_carries_comfys_operations(parts, video_references):
    import comfy.ops

    for name in ("tiny-video", "tiny-video-ltx2"):
        model, _, vae = drawing.call("SanaLoadPipeline", pipeline=name)
        for module in (model.model.diffusion_model, vae.first_stage_model.autoencoder):
            layers = [m for m in module.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.Conv2d))]
            assert len(layers) > 3 and all(isinstance(layer, comfy.ops.CastWeightBiasOp) for layer in layers)


@pytest.mark.parametrize("node", ["decode", "encode", "frames"])
def test_running_out_of_memory_falls_back_to_tiles(parts, video_references, monkeypatch, node):
    """The first pass over whole frames raises PyTorch's own error; the second goes through tiles."""
    from sana_nodes.networks import streaming

    vae = drawing.call("SanaLoadPipeline", pipeline="tiny-video")[2]
    tried = []

    def failing(name, true):
        def run(*args, **kwargs):
            tiles = inspect.signature(true).bind(*args, **kwargs).arguments["tiles"]
            tried.append(tiles)
            if tiles is None:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return true(*args, **kwargs)

        monkeypatch.setattr(streaming, name, run)

    failing("decode_pieces", streaming.decode_pieces)
    failing("encode_pieces", streaming.encode_pieces)
    latent = torch.randn(1, 16, 2, 8, 8)
    if node == "decode":
        assert vae.decode(latent).shape == (1, 5, 64, 64, 3)
    elif node == "frames":
        assert sum(len(piece) for piece in vae.frames(latent)) == 5
    else:
        assert vae.encode(torch.rand(5, 64, 64, 3)).shape == (1, 16, 2, 8, 8)
    assert tried[0] is None and tried[1].size == 32


def test_a_step_asks_for_the_memory_that_was_measured(parts, monkeypatch):
    """Before sampling and at each step, ComfyUI asks with the latent's shape and the prompt's length."""
    network, asked = parts[0].model, []
    true = type(network).memory_required

    def required(self, shape, cond_shapes=None):
        asked.append((list(shape), [tuple(s)[1] for s in (cond_shapes or {}).get("c_crossattn", ())]))
        return true(self, shape, cond_shapes)

    monkeypatch.setattr(type(network), "memory_required", required)
    drawing.ours(parts, "a red ring")
    assert [1, 32, 2, 2] in [shape for shape, _ in asked] and [2, 32, 2, 2] in [shape for shape, _ in asked]
    assert all(lengths and min(lengths) > 1 for _, lengths in asked)
    short, long = ({"c_crossattn": [torch.Size([1, n, 48])]} for n in (10, 200))
    assert true(network, [1, 32, 8, 8], short) < true(network, [1, 32, 8, 8], long) < true(network, [1, 32, 8, 8])
    assert true(network, [2, 32, 8, 8], short) == 2 * true(network, [1, 32, 8, 8], short)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_a_step_in_comfyui_takes_what_it_asks_for(parts, stored, size):
    """BaseModel.apply_model of SANA-Sprint 0.6B, two blocks of it, on meta tensors; on the CPU bfloat16 is cast."""
    from pathlib import Path

    from diffusers import SanaTransformer2DModel
    from sana_nodes.host.comfyui.model import build_model
    from sana_nodes.model_loaders import transformer
    from sana_nodes.networks import families

    config = {**benchmark.HALF, **benchmark.SPRINT, "num_layers": 2}
    with torch.device("meta"):
        module = SanaTransformer2DModel(**config).to(stored)
        x, sigma, context, guidance = (torch.empty(1, *s) for s in ((32, size, size), (), (120, 2304), ()))
    loaded = transformer.LoadedTransformer(module, transformer.spec_of(module.config, families.SPRINT), Path())
    model = build_model(loaded, "default").model
    assert (model.manual_cast_dtype is None) == (stored == torch.float32)
    peak = traced_peak(lambda: model.apply_model(x, sigma, c_crossattn=context, guidance=guidance))
    told = model.memory_required(list(x.shape), {"c_crossattn": [context.shape]})
    assert 0.7 < told / peak < 1.3, f"told {told / peak:.2f} of the peak"


@pytest.mark.parametrize("cells", [(1, 32, 32), (5, 60, 104)], ids=str)
@pytest.mark.parametrize("timed", [False, True], ids=["text", "image to video"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_a_step_of_a_video_takes_what_it_asks_for(parts, monkeypatch, stored, timed, cells):
    """The same of SANA-Video 2B; the mask's values, which meta tensors do not have, hold something."""
    from pathlib import Path

    from diffusers import SanaVideoTransformer3DModel
    from sana_nodes.host.comfyui.model import build_model
    from sana_nodes.model_loaders import transformer
    from sana_nodes.networks import families

    kind, config = benchmark.CONFIGS["SANA-Video 480p"]
    with torch.device("meta"):
        module = SanaVideoTransformer3DModel(**{**config, "num_layers": 2}).to(stored)
        x, sigma, context, mask = (torch.empty(1, *s) for s in ((16, *cells), (), (120, 2304), (1, *cells)))
    loaded = transformer.LoadedTransformer(module, transformer.spec_of(module.config, families.VIDEO), Path())
    model = build_model(loaded, "default").model
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: True)
    held = {"denoise_mask": mask} if timed else {}
    peak = traced_peak(lambda: model.apply_model(x, sigma, c_crossattn=context, **held))
    shapes = {"c_crossattn": [context.shape], **({"denoise_mask": [mask.shape]} if timed else {})}
    ratio = model.memory_required(list(x.shape), shapes) / peak
    assert 0.7 < ratio < 1.3, f"{ratio:.2f} of the peak"


def test_a_held_first_frame_asks_for_more_memory(parts, video_references):
    """Every token has a time of its own then, and a modulation."""
    network = drawing.call("SanaLoadPipeline", pipeline="tiny-video")[0].model
    held = {"denoise_mask": [torch.Size([1, 1, 5, 32, 32])]}
    shape = [1, 16, 5, 32, 32]
    assert 1.35 < network.memory_required(shape, held) / network.memory_required(shape) < 1.5


def test_weights_left_behind_follow_their_input(parts):
    """A modulation table or a norm that comfy did not move is brought to the device that asks, here meta."""

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.ones(4))
            self.register_buffer("places", torch.ones(4))
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, hidden_states=None):
            return hidden_states * self.table + self.places

    from sana_nodes.host.comfyui.modules import use_comfy_ops

    block = use_comfy_ops(Table().requires_grad_(False), None, torch.float32)
    assert block(hidden_states=torch.zeros(2, 4, device="meta")).is_meta
    assert block.table.is_meta and block.places.is_meta and not block.inner.weight.is_meta


def test_lora_like_patches_change_the_picture_and_leave_no_trace(parts):
    model, clip, vae = parts
    before = drawing.ours(parts, "a red ring")
    weight = model.model.diffusion_model.transformer_blocks[0].attn2.to_v.weight
    kept = weight.clone()
    patched = model.clone()
    key = "diffusion_model.transformer_blocks.0.attn2.to_v.weight"
    assert patched.add_patches({key: (torch.full_like(weight, 0.3),)}, 1.0) == [key]
    assert (drawing.ours((patched, clip, vae), "a red ring") - before).abs().max() > 1e-4
    assert drawing.difference(drawing.ours(parts, "a red ring"), before) < drawing.ROUNDING
    assert torch.equal(model.model.diffusion_model.transformer_blocks[0].attn2.to_v.weight, kept)


SMALL = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


@pytest.mark.parametrize("dtype,stored", SMALL.items())
def test_weight_dtype_is_stored_and_computed_in_float32(parts, dtype, stored):
    model = drawing.call("SanaLoadTransformer", model_name="tiny", weight_dtype=dtype)[0]
    network = model.model.diffusion_model
    assert network.transformer_blocks[0].attn1.to_q.weight.dtype == stored
    assert network.transformer_blocks[0].scale_shift_table.dtype == torch.float32
    assert model.model.manual_cast_dtype == torch.float32
    coarse = drawing.ours((model, *parts[1:]), "a red ring")
    assert 1e-4 < drawing.difference(coarse, drawing.ours(parts, "a red ring")) < 0.5


@pytest.mark.parametrize("part,name", [("SanaLoadTextEncoder", "encoder_name"), ("SanaLoadVAE", "vae_name")])
def test_float16_is_never_computed_in(parts, part, name, monkeypatch, caplog):
    import comfy.cli_args

    caplog.set_level("INFO")
    monkeypatch.setattr(comfy.cli_args.args, "fp16_vae", True)
    monkeypatch.setattr(comfy.cli_args.args, "fp16_text_enc", True)
    loaded = drawing.call(part, **{name: "tiny"})[0]
    dtypes = loaded.cond_stage_model.dtypes if part == "SanaLoadTextEncoder" else {loaded.vae_dtype}
    assert torch.float16 not in dtypes
    assert f"computes in {str(next(iter(dtypes))).removeprefix('torch.')}: float16 overflows in it" in caplog.text


@pytest.mark.parametrize("name", ["fp32", *SMALL])
def test_comfyuis_flags_choose_what_default_stores(parts, monkeypatch, name):
    """--fp16-unet and its like; a weight_dtype in the loader is stronger."""
    import comfy.cli_args

    monkeypatch.setattr(comfy.cli_args.args, f"{name}_unet", True)
    for asked, stored in (("default", SMALL.get(name, torch.float32)), ("bf16", torch.bfloat16)):
        model = drawing.call("SanaLoadTransformer", model_name="tiny", weight_dtype=asked)[0].model
        assert model.diffusion_model.transformer_blocks[0].attn1.to_q.weight.dtype == stored
        assert (model.manual_cast_dtype or model.get_dtype()) == torch.float32


@pytest.mark.parametrize("stored,expected", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)], ids=str)
def test_a_video_vae_computes_in_the_dtype_of_its_file(parts, home, monkeypatch, stored, expected):
    """As if on a card that is made for bfloat16, where DC-AE computes in it whatever its file."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *args, **kwargs: True)
    folder = home / "models" / "vae" / f"wan-{expected}"
    tiny.wan_vae().to(stored).save_pretrained(folder)
    vae = drawing.call("SanaLoadVAE", vae_name=folder.name)[0]
    assert vae.vae_dtype == expected
    assert vae.decode(torch.randn(1, 16, 2, 4, 4)).dtype == torch.float32
    assert drawing.call("SanaLoadVAE", vae_name="tiny")[0].vae_dtype == torch.bfloat16
    assert drawing.call("SanaLoadVAE", vae_name=folder.name, weight_dtype="fp32")[0].vae_dtype == torch.float32


def test_a_stranger_is_refused(parts):
    model, clip, vae = parts
    stranger = type("Patcher", (), {"model": type("Flux", (), {})()})()
    with pytest.raises(ValueError, match=r"this MODEL \(Flux\) is not SANA: load one"):
        drawing.call("SanaSCMSample", model=stranger, positive=[], latent_image={"samples": torch.zeros(1, 32, 2, 2)})
    other = type("CLIP", (), {"tokenizer": type("SD1Tokenizer", (), {})()})()
    with pytest.raises(ValueError, match=r"\(SD1Tokenizer\) is not SANA's Gemma-2"):
        drawing.call("SanaEncodePrompt", clip=other, text="x")
    with pytest.raises(
        ValueError, match=r"the latent has the shape \[1, 4, 8, 8\] and this VAE \(DC-AE\) takes 32 channels"
    ):
        vae.decode(torch.zeros(1, 4, 8, 8))
