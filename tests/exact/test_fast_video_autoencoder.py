"""Video autoencoders in fewer passes, against diffusers' own forward on the same weights."""

from __future__ import annotations

import copy

import drawing
import pytest
import tiny
import torch
from sana_nodes.host.embedded.devices import CASTING
from sana_nodes.networks import fast_autoencoder, fast_video_autoencoder, precision, streaming
from sana_nodes.networks.autoencoder import use_fast_autoencoder
from sana_nodes.networks.fast_video_autoencoder import FAST, FastCausalConv, FastConv3d, reflected
from sana_nodes.networks.latent_spaces import LTX2, WAN, VaeSpec

SPEC = VaeSpec(WAN, 16, 8, 4)
CONFIGS = {
    "wan": {},
    "narrow": {"num_res_blocks": 1, "dim_mult": [1, 1, 1, 1]},
    "other strides": {"temperal_downsample": [True, True, False]},
    "another decoder": {"decoder_base_dim": 12, "dim_mult": [1, 2, 4, 4]},
    "residual": {"is_residual": True},
}


def inputs(batch=1, frames=3, rows=2, columns=3, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 16, frames, rows, columns, generator=generator)
    pixels = torch.rand(batch, 3, frames * 4 - 3, rows * 8, columns * 8, generator=generator) * 2 - 1
    return {"decode": latents, "encode": pixels}


def result(module, half: str, x: torch.Tensor) -> torch.Tensor:
    out = getattr(module, half)(x, return_dict=False)[0]
    return out.parameters if half == "encode" else out


@torch.no_grad()
def assert_equal(module, given, dtype=torch.float32) -> None:
    fast = use_fast_autoencoder(copy.deepcopy(module))
    for half, x in given.items():
        theirs, mine = (result(one, half, x.to(dtype)) for one in (module, fast))
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (1, 3, 2, 5), (2, 2, 3, 1)], ids=["one cell", "frames", "batch"])
def test_it_is_diffusers_answer(config, size):
    assert_equal(tiny.wan_vae(**CONFIGS[config]), inputs(*size))


def test_steps_cover_every_row(monkeypatch):
    monkeypatch.setattr(fast_autoencoder, "STEP", 100)
    assert_equal(tiny.wan_vae(), inputs())


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_pieces_give_what_diffusers_gives_at_once(frames):
    module = tiny.wan_vae()
    fast, given = use_fast_autoencoder(copy.deepcopy(module)), inputs(frames=frames)
    pieces = streaming.decode_pieces(fast, SPEC, given["decode"], torch.device("cpu"), torch.float32)
    theirs, mine = module.decode(given["decode"], return_dict=False)[0], torch.cat(list(pieces), dim=2)
    assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


@torch.no_grad()
def test_the_cached_frames_are_diffusers():
    """A piece may be computed by either: what is kept for the next one is the same."""
    module = tiny.wan_vae()
    kept = []
    for one in (module, use_fast_autoencoder(copy.deepcopy(module))):
        one.clear_cache()
        memory = [None] * len(one._feat_map)
        for frame in range(3):
            one.decoder(inputs()["decode"][:, :, frame : frame + 1], memory, [0], frame == 0)
        kept.append(memory)
    assert any(isinstance(frames, torch.Tensor) for frames in kept[0])
    for theirs, mine in zip(*kept):
        assert (mine is None) == (theirs is None)
        assert mine is None or (mine.shape == theirs.shape and (mine - theirs).abs().max() < 1e-5 * theirs.abs().max())


@torch.no_grad()
def test_nothing_is_kept_after_the_last_piece():
    coder = streaming.WanDecoder(use_fast_autoencoder(tiny.wan_vae()))
    latents = inputs(frames=4)["decode"]
    coder.push(latents[:, :, :2], False)
    assert any(isinstance(frames, torch.Tensor) for frames in coder.memory)
    coder.push(latents[:, :, 2:], True)
    assert not any(isinstance(frames, torch.Tensor) for frames in coder.memory)


def test_every_layer_is_replaced():
    names = {type(part).__name__: type(part).__mro__[1] for part in use_fast_autoencoder(tiny.wan_vae()).modules()}
    assert all(names[kind] is fast for kind, (fast, _) in FAST.items() if kind != "WanResample")


def test_twice_is_once():
    module = use_fast_autoencoder(use_fast_autoencoder(tiny.wan_vae()))
    assert type(module.decoder.conv_in).__mro__.count(FastCausalConv) == 1


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_layers_that_cast(stored):
    assert_equal(precision.use_casting_layers(tiny.wan_vae(), CASTING, stored, torch.float32), inputs())


@torch.no_grad()
def test_inputs_and_weights_are_left_alone():
    module = use_fast_autoencoder(tiny.wan_vae())
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    for half, x in inputs().items():
        before = x.clone()
        first, second = (result(module, half, x) for _ in range(2))
        assert torch.equal(first, second) and torch.equal(x, before)
    assert weights.keys() == tiny.wan_vae().state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


@torch.no_grad()
def test_layers_leave_their_input_alone():
    module = use_fast_autoencoder(tiny.wan_vae())
    for kind, layer, channels in (
        ("block", module.decoder.up_blocks[0].resnets[0], 16),
        ("upsampling", module.decoder.up_blocks[0].upsamplers[0], 16),
        ("convolution", module.decoder.conv_in, 16),
    ):
        x = torch.randn(1, channels, 3, 8, 8).contiguous(memory_format=torch.channels_last_3d)
        before = x.clone()
        layer(x)
        assert torch.equal(x, before), kind


def test_gradients_go_diffusers_way():
    module = tiny.wan_vae()
    fast = use_fast_autoencoder(copy.deepcopy(module))
    for one in (module, fast):
        sum(result(one, half, x).square().mean() for half, x in inputs(frames=2).items()).backward()
    for (name, one), other in zip(module.named_parameters(), fast.parameters()):
        assert (one.grad - other.grad).abs().max() <= 1e-4 * one.grad.abs().max() + 1e-7, name


@torch.no_grad()
def test_bfloat16_is_no_farther_from_float32_than_diffusers():
    """Root mean square over seeds; 1.1 leaves room for the chance of where rounding falls."""
    errors = {"decode": torch.zeros(2), "encode": torch.zeros(2)}
    for seed in range(6):
        half = tiny.wan_vae(seed).to(torch.bfloat16)
        exact, fast = copy.deepcopy(half).float(), use_fast_autoencoder(copy.deepcopy(half))
        for name, x in inputs(frames=2, rows=4, seed=seed).items():
            reference = result(exact, name, x.bfloat16().float())
            both = (result(one, name, x.bfloat16()).float() for one in (half, fast))
            errors[name] += torch.stack([(one - reference).square().mean() for one in both])
    for theirs, mine in (squares.sqrt() for squares in errors.values()):
        assert 0 < mine < 1.1 * theirs


LTX2_CONFIGS = {
    "ltx2": {},
    "encoder not causal": {"encoder_causal": False},
    "decoder not causal": {"decoder_causal": False},
    "zeros around": {"decoder_spatial_padding_mode": "zeros"},
    "reflected in both": {"encoder_spatial_padding_mode": "reflect"},
}
LTX2_SPEC = VaeSpec(LTX2, 128, 32, 8)


def ltx2_inputs(batch=1, frames=3, rows=2, columns=3, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 128, frames, rows, columns, generator=generator)
    return {"decode": latents, "encode": torch.rand(batch, frames * 8 - 7, rows * 32, columns * 32, 3)}


def in_pieces(module, half: str, x: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """As hosts do it."""
    if half == "encode":
        return streaming.encode_pieces(module, LTX2_SPEC, x, torch.device("cpu"), dtype)
    return torch.cat(list(streaming.decode_pieces(module, LTX2_SPEC, x, torch.device("cpu"), dtype)), dim=2)


def at_once(module, half: str, x: torch.Tensor) -> torch.Tensor:
    """As diffusers does it."""
    if half == "encode":
        return module.encode(x.movedim(-1, 1) * 2.0 - 1.0, return_dict=False)[0].mode()
    return module.decode(x, return_dict=False)[0]


@torch.no_grad()
@pytest.mark.parametrize("weights", [2**23, 20_000], ids=["whole weights", "parts of weights"])
@pytest.mark.parametrize("config", LTX2_CONFIGS)
@pytest.mark.parametrize("size", [(1, 1, 2, 2), (2, 4, 2, 3)], ids=["one frame", "batch of frames"])
def test_ltx2_is_diffusers_answer(monkeypatch, weights, config, size):
    """In pieces with this pack's order of computation, and with diffusers' own forward over the same layers."""
    monkeypatch.setattr(fast_video_autoencoder, "WEIGHTS", weights)
    module = tiny.ltx2_vae(**LTX2_CONFIGS[config])
    fast = use_fast_autoencoder(copy.deepcopy(module))
    assert any(isinstance(part, FastConv3d) for part in fast.decoder.modules())
    for half, x in ltx2_inputs(*size).items():
        theirs = at_once(module, half, x)
        for mine in (in_pieces(fast, half, x), at_once(fast, half, x)):
            assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_reflected_is_what_torch_pads():
    x = torch.randn(2, 3, 2, 4, 5)
    for given in (x, x.contiguous(memory_format=torch.channels_last_3d)):
        for rows, columns in ((1, 1), (3, 2), (0, 1)):
            expected = torch.nn.functional.pad(x, (columns, columns, rows, rows, 0, 0), mode="reflect")
            assert torch.equal(reflected(given, rows, columns), expected)


@torch.no_grad()
def test_ltx2_of_layers_that_cast():
    module = precision.use_casting_layers(tiny.ltx2_vae(), CASTING, torch.bfloat16, torch.float32)
    fast, x = use_fast_autoencoder(copy.deepcopy(module)), ltx2_inputs()["decode"]
    theirs = at_once(module, "decode", x)
    assert (in_pieces(fast, "decode", x) - theirs).abs().max() < 1e-5 * theirs.abs().max()


@torch.no_grad()
def test_ltx2_leaves_its_input_and_weights_alone():
    module = use_fast_autoencoder(tiny.ltx2_vae())
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    for half, x in ltx2_inputs().items():
        before = x.clone()
        assert torch.equal(in_pieces(module, half, x), in_pieces(module, half, x)) and torch.equal(x, before)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


@torch.no_grad()
def test_ltx2_in_bfloat16_is_no_farther_from_float32_than_diffusers():
    errors = {"decode": torch.zeros(2), "encode": torch.zeros(2)}
    for seed in range(6):
        half = tiny.ltx2_vae(seed).to(torch.bfloat16)
        exact, fast = copy.deepcopy(half).float(), use_fast_autoencoder(copy.deepcopy(half))
        for name, x in ltx2_inputs(frames=2, seed=seed).items():
            x = x.bfloat16()
            reference = at_once(exact, name, x.float())
            both = at_once(half, name, x), in_pieces(fast, name, x, torch.bfloat16)
            errors[name] += torch.stack([(one.float() - reference).square().mean() for one in both])
    for theirs, mine in (squares.sqrt() for squares in errors.values()):
        assert 0 < mine < 1.1 * theirs


@pytest.mark.parametrize("folder,kind", [("tiny-video", FastCausalConv), ("tiny-video-ltx2", FastConv3d)])
def test_hosts_use_it(host, video_references, folder, kind):
    """Over the host's layers, not only over torch's."""
    vae = drawing.call("SanaLoadPipeline", pipeline=folder)[2]
    module = (getattr(vae, "sana_autoencoder", None) or vae.autoencoder).module
    convolutions = [part for part in module.modules() if isinstance(part, torch.nn.Conv3d)]
    assert convolutions and all(isinstance(part, kind) for part in convolutions)
