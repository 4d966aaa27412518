"""weight_dtype int8_bnb: bitsandbytes' own answer, bounded error, LoRA, moves, and a word where it cannot be had."""

from __future__ import annotations

import drawing
import pytest
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.networks import int8, precision

ROUNDING = 1e-3
"""Two passes over the same int8 weights differ by less: a float that rounds otherwise (drawing.ROUNDING) may take an
input to the next of its 255 steps. None did under other kernels (1e-6); int8 itself moves the image by 0.05."""


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="int8_bnb needs bitsandbytes")


def layer(seed: int = 0, outliers: bool = True):
    """A Linear and inputs [2, 9, 96] for it, some of whose columns are outliers."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.nn.Linear(96, 64).requires_grad_(False)
    made.weight.copy_(torch.randn(64, 96, generator=generator) * torch.logspace(-3, 1, 64)[:, None])
    x = torch.randn(2, 9, 96, generator=generator)
    if outliers:
        x[..., 5] *= 100
        x[0, 3, 70] = 3e5  # no float16 holds it
    return made, x


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)], ids=["many", "one"])
def test_the_answer_is_linear8bitlts(bitsandbytes, rows):
    made, x = layer()
    theirs = bitsandbytes.nn.Linear8bitLt(96, 64, has_fp16_weights=False, threshold=6.0)
    theirs.weight = bitsandbytes.nn.Int8Params(made.weight.clone(), requires_grad=False, has_fp16_weights=False)
    theirs.bias = made.bias
    theirs = theirs.to("cpu").eval()
    x = x[:1, rows]
    expected = theirs(x.clone())
    assert torch.allclose(int8.quantise(made)(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("outliers", [False, True])
def test_the_error_is_that_of_two_roundings(bitsandbytes, outliers):
    """Half a step of a row's 127 in the weight, and in the input where it is no outlier; float16 adds 2**-11."""
    made, x = layer(outliers=outliers)
    weight = made.weight.clone()
    exact = x @ weight.t() + made.bias
    inner = torch.where(x.abs() >= int8.THRESHOLD, 0.0, x)
    step = 0.5 / 127 + 2**-11
    of_weight = x.abs().sum(-1, keepdim=True) * weight.abs().amax(1) * step
    of_input = inner.abs().amax(-1, keepdim=True) * weight.abs().sum(1) * step
    error = (int8.quantise(made)(x) - exact).abs()
    assert torch.isfinite(error).all() and (error > 0).any()
    assert (error <= (of_weight + of_input) * 1.02).all()


def test_every_linear_is_one_byte_and_follows_its_module(bitsandbytes):
    network = precision.use_casting_layers(tiny.transformer().requires_grad_(False), {}, torch.int8, torch.float32)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) > 20 and all(m.weight.dtype == torch.int8 and type(m) is int8.Int8Linear for m in layers)
    state = network.state_dict()
    assert all(state[f"{name}_scale"].ndim == 1 for name in state if state[name].dtype == torch.int8)
    network.to("meta")
    assert all(m.weight.is_meta and m.weight_scale.is_meta for m in layers)


@pytest.mark.parametrize("node", ["SanaLoadPipeline", "SanaLoadTransformer", "SanaLoadTextEncoder"])
def test_pictures_stay_close_on_both_hosts(bitsandbytes, host, reference, node):
    parts = list(drawing.call("SanaLoadPipeline", pipeline="tiny"))
    exact = drawing.ours(parts, "a red ring")
    names = {"SanaLoadPipeline": "pipeline", "SanaLoadTransformer": "model_name", "SanaLoadTextEncoder": "encoder_name"}
    loaded = drawing.call(node, **{names[node]: "tiny", "weight_dtype": "int8_bnb"})
    place = 1 if node == "SanaLoadTextEncoder" else 0
    parts[place : place + len(loaded)] = loaded
    coarse = drawing.ours(parts, "a red ring")
    assert drawing.difference(coarse, exact) > 1e-3
    assert (coarse - exact).abs().mean() < 0.02


def test_a_lora_lies_on_the_floating_weight_and_leaves(bitsandbytes, host, reference, home):
    """LoRA on int8 weights changes the picture about as on floating ones, and the model without it is as it was."""
    path = home / "models" / "loras" / "int8.safetensors"
    tiny.write_lora(path)
    whole = drawing.call("SanaLoadPipeline", pipeline="tiny")
    model = drawing.call("SanaLoadTransformer", model_name="tiny", weight_dtype="int8_bnb")[0]
    weights = {name: value.clone() for name, value in drawing.network_of(model).state_dict().items()}
    before = drawing.ours((model, *whole[1:]), "a red ring")

    def with_lora(given):
        patched = drawing.call("SanaLoadLora", model=given, lora_name=path.name, strength=1.0)[0]
        return drawing.ours((patched, *whole[1:]), "a red ring")

    mine, exact = with_lora(model), with_lora(whole[0])
    assert (exact - before).abs().mean() > 5 * (mine - exact).abs().mean() > 0
    after = drawing.network_of(model).state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in weights.items())
    assert drawing.difference(drawing.ours((model, *whole[1:]), "a red ring"), before) < ROUNDING
    path.unlink()


@pytest.mark.comfyui
@pytest.mark.parametrize("budget", [1, 60_000])
def test_a_model_loaded_in_part_draws_the_same(bitsandbytes, home, reference, budget):
    import in_process
    from sana_nodes import host as hosts

    in_process.start_comfyui(home)
    hosts.use("comfyui")
    parts = drawing.call("SanaLoadPipeline", pipeline="tiny", weight_dtype="int8_bnb")
    expected, cpu = drawing.ours(parts, "a red ring"), torch.device("cpu")
    patchers = (parts[0], parts[1].patcher)
    for patcher in patchers:
        patcher.unpatch_model(cpu)
        patcher.load(cpu, lowvram_model_memory=budget)
    try:
        assert drawing.difference(drawing.ours(parts, "a red ring"), expected) < ROUNDING
    finally:
        for patcher in patchers:
            patcher.detach()
        hosts._current = None


@pytest.mark.comfyui
def test_model_save_writes_floating_weights_that_draw_the_same(bitsandbytes, home, reference, tmp_path):
    import in_process
    from sana_nodes import host as hosts
    from sana_nodes.model_loaders.transformer import load_transformer

    in_process.start_comfyui(home)
    hosts.use("comfyui")
    model = drawing.call("SanaLoadTransformer", model_name="tiny", weight_dtype="int8_bnb")[0]
    given = [model.model.diffusion_model.state_dict()] if _takes_state(model) else []
    saved = model.model.state_dict_for_saving(*given)
    save_file({key: value.contiguous() for key, value in saved.items()}, tmp_path / "saved.safetensors")
    loaded = load_transformer(tmp_path / "saved.safetensors").module
    for name, layer in model.model.diffusion_model.named_modules():
        if isinstance(layer, int8.Int8Linear):
            assert torch.equal(loaded.get_submodule(name).weight, layer.convert_weight(layer.weight))
    hosts._current = None


def _takes_state(model) -> bool:
    """ComfyUI 0.33 hands the transformer's weights over; before, they were looked up."""
    import inspect

    return "unet_state_dict" in inspect.signature(model.model.state_dict_for_saving).parameters


@pytest.mark.parametrize("why", ["absent", "broken"])
@pytest.mark.parametrize("node", ["SanaLoadPipeline", "SanaLoadTransformer", "SanaLoadTextEncoder"])
def test_where_it_cannot_be_had_it_is_said_before_anything_is_read(host, monkeypatch, node, why):
    name = {"SanaLoadPipeline": "pipeline", "SanaLoadTransformer": "model_name"}.get(node, "encoder_name")
    int8.unavailable_reason.cache_clear()
    if why == "absent":
        monkeypatch.setattr(int8.importlib.util, "find_spec", lambda name: None)
        said = "bitsandbytes is not installed"
    else:
        monkeypatch.setattr(int8.importlib.util, "find_spec", lambda name: True)
        monkeypatch.setattr(int8, "quantise", lambda layer: (_ for _ in ()).throw(RuntimeError("no kernel")))
        said = r"does not run on this machine's \w+ \(no kernel\)"
    try:
        with pytest.raises(ValueError, match=f"int8_bnb is not available: .*{said}.*choose"):
            drawing.call(node, **{name: "absent", "weight_dtype": "int8_bnb"})
    finally:
        int8.unavailable_reason.cache_clear()
