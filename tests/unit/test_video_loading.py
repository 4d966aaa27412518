"""Files of SANA-Video and its autoencoders: every layout gives the same weights, every wrong one is refused."""

from __future__ import annotations

import drawing
import pytest
import tiny
import torch
from layouts import nvlabs
from safetensors.torch import load_file, save_file
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.pipeline import load_pipeline
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae
from sana_nodes.networks.autoencoder import from_autoencoder, to_autoencoder
from sana_nodes.networks.latent_spaces import WAN, neutral_latent
from sana_nodes.networks.transformer import token_times


@pytest.fixture(scope="module")
def transformer():
    return tiny.video_transformer()


def same_weights(module, expected) -> None:
    found, wanted = module.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "layout", ["folder", "file", "prefixed", "nvlabs.pth", "nvlabs.safetensors", "nvlabs prefixed"]
)
def test_transformer_layouts(tmp_path, transformer, layout):
    weights, path = transformer.state_dict(), tmp_path / "model.safetensors"
    prefixed = {f"model.diffusion_model.{name}": value for name, value in weights.items()}
    if layout == "folder":
        path = tmp_path / "transformer"
        transformer.save_pretrained(path, max_shard_size="100KB")
    elif layout == "nvlabs.pth":
        path = tmp_path / "model.pth"
        torch.save({"state_dict": nvlabs(weights), "epoch": 3}, path)
    elif layout == "nvlabs prefixed":
        save_file({f"model.diffusion_model.{name}": value for name, value in nvlabs(weights).items()}, path)
    else:
        save_file({"file": weights, "prefixed": prefixed, "nvlabs.safetensors": nvlabs(weights)}[layout], path)
    loaded = load_transformer(path)
    same_weights(loaded.module, transformer)
    assert (loaded.spec.family.key, loaded.spec.latent_channels, loaded.spec.patch) == ("video", 16, (1, 2, 2))
    assert loaded.spec.flow_shift == 8.0 and loaded.spec.name == "SANA-Video"
    generator = torch.Generator().manual_seed(0)
    x, states = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 4, 4), (1, 7, 48)))
    with torch.no_grad():
        mine = loaded.module(x, states, torch.tensor([500.0]), return_dict=False)[0]
        theirs = transformer(x, states, torch.tensor([500.0]), return_dict=False)[0]
    assert drawing.difference(mine, theirs) < drawing.ROUNDING


def test_fused_weights_are_views(tmp_path, transformer):
    path = tmp_path / "model.safetensors"
    save_file(nvlabs(transformer.state_dict()), path)
    module = load_transformer(path).module.transformer_blocks[0].attn2
    keys, values = module.to_k.weight, module.to_v.weight
    assert values.data_ptr() - keys.data_ptr() == keys.numel() * keys.element_size()


@pytest.mark.parametrize("sizes", [{}, {"in_channels": 128, "out_channels": 128, "patch_size": (1, 1, 1)}], ids=str)
def test_config_from_shapes_of_the_published_sizes(tmp_path, sizes):
    """Two layers of the 2B model at its real widths, as a file without its config."""
    from diffusers import SanaVideoTransformer3DModel

    published = {"num_layers": 2, "mlp_ratio": 3.0, **sizes}
    with torch.device("meta"):
        expected = SanaVideoTransformer3DModel(**published)
    shapes = {name: value.shape for name, value in expected.state_dict().items()}
    save_file(
        {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, tmp_path / "m.safetensors"
    )
    module = load_transformer(tmp_path / "m.safetensors").module
    assert {name: value.shape for name, value in module.state_dict().items()} == shapes
    for key in ("num_attention_heads", "attention_head_dim", "num_cross_attention_heads", "patch_size", "in_channels"):
        assert tuple(torch.tensor(module.config[key]).flatten()) == tuple(torch.tensor(expected.config[key]).flatten())


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": {"x": torch.zeros(1)}, "trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UnusableFile, match="never run"):
        load_transformer(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 cut"])
def test_a_broken_pytorch_file(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(UnusableFile, match="model.pth"):
        load_transformer(tmp_path / "model.pth")


def test_unknown_missing_and_uneven_keys(tmp_path, transformer):
    good = nvlabs(transformer.state_dict())
    for change, said in (
        ({**good, "blocks.0.extra.weight": torch.zeros(1)}, "blocks.0.extra.weight"),
        ({k: v for k, v in good.items() if k != "blocks.1.attn.qkv.weight"}, "missing"),
        ({**good, "blocks.1.attn.qkv.weight": torch.zeros(100, 64)}, "not divisible by 3"),
    ):
        save_file(change, tmp_path / "model.safetensors")
        with pytest.raises(UnusableFile, match=said):
            load_transformer(tmp_path / "model.safetensors")


@pytest.mark.parametrize("layout", ["folder", "file", "original"])
def test_wan_layouts(tmp_path, layout):
    module, path = tiny.wan_vae(), tmp_path / "vae.safetensors"
    weights = module.state_dict()
    if layout == "folder":
        path = tmp_path / "vae"
        module.save_pretrained(path)
    elif layout == "file":
        save_file(weights, path)
    else:
        save_file({tiny.original_wan_name(name): value.contiguous() for name, value in weights.items()}, path)
    loaded = load_vae(path)
    same_weights(loaded.module, module)
    assert (loaded.spec.space.key, loaded.spec.latent_channels) == ("wan", 16)
    assert (loaded.spec.spatial_ratio, loaded.spec.temporal_ratio) == (8, 4)
    assert loaded.spec.gain == (1.0,) * 16 and loaded.spec.offset == (0.0,) * 16


def test_the_published_wan_vae_has_the_names_that_comfyui_knows():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        names = [tiny.original_wan_name(name) for name in AutoencoderKLWan().state_dict()]
    for known in (
        "conv1.weight",
        "conv2.bias",
        "encoder.conv1.weight",
        "encoder.downsamples.0.residual.0.gamma",
        "encoder.downsamples.2.resample.1.weight",
        "encoder.downsamples.5.time_conv.weight",
        "encoder.middle.1.to_qkv.weight",
        "encoder.head.2.weight",
        "decoder.middle.0.residual.0.gamma",
        "decoder.upsamples.3.time_conv.weight",
        "decoder.upsamples.4.shortcut.weight",
        "decoder.upsamples.14.residual.6.weight",
        "decoder.head.0.gamma",
    ):
        assert known in names
    assert len(set(names)) == len(names)


def test_a_wan_vae_with_latents_of_its_own_is_brought_to_the_common_ones(tmp_path):
    mean, std = [0.1 * i for i in range(16)], [1.0 + 0.1 * i for i in range(16)]
    tiny.wan_vae(latents_mean=mean, latents_std=std).save_pretrained(tmp_path / "vae")
    spec = load_vae(tmp_path / "vae").spec
    normal = torch.randn(1, 16, 2, 3, 3)
    common = normal * torch.tensor(WAN.std).view(1, 16, 1, 1, 1) + neutral_latent(WAN).view(1, 16, 1, 1, 1)
    own = normal * torch.tensor(std).view(1, 16, 1, 1, 1) + torch.tensor(mean).view(1, 16, 1, 1, 1)
    assert (to_autoencoder(spec, common) - own).abs().max() < 1e-5
    assert (from_autoencoder(spec, own) - common).abs().max() < 1e-5


def test_ltx2_folder(tmp_path):
    module = tiny.ltx2_vae()
    module.save_pretrained(tmp_path / "vae")
    loaded = load_vae(tmp_path / "vae")
    same_weights(loaded.module, module)
    assert (loaded.spec.space.key, loaded.spec.latent_channels) == ("ltx2", 128)
    assert (loaded.spec.spatial_ratio, loaded.spec.temporal_ratio) == (32, 8)
    weights = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(weights, tmp_path / "alone.safetensors")
    with pytest.raises(UnusableFile, match="diffusers folder"):
        load_vae(tmp_path / "alone.safetensors")


def test_variants_of_ltx_that_sana_does_not_use(tmp_path):
    tiny.ltx2_vae(decoder_inject_noise=(True, False, False, False)).save_pretrained(tmp_path / "vae")
    with pytest.raises(UnusableFile, match="noise or timesteps"):
        load_vae(tmp_path / "vae")


def test_the_scheduler_says_the_shift(tmp_path):
    pipeline = tiny.video_pipeline(tmp_path / "video", tiny.wan_vae(), tiny.video_transformer(), shift=5.5)
    assert pipeline.scheduler.config.flow_shift == 5.5
    assert load_pipeline(tmp_path / "video").transformer.spec.flow_shift == 5.5


def test_times_of_tokens(tmp_path, transformer):
    """0 for the tokens of what is held, the run's time for the others; a half-held patch has half the time."""
    transformer.save_pretrained(tmp_path / "transformer")
    spec = load_transformer(tmp_path / "transformer").spec
    mask = torch.ones(2, 1, 3, 4, 4)
    mask[:, :, 0] = 0.0
    mask[:, :, 2, :, 0] = 0.0
    times = token_times(spec, torch.tensor([800.0, 400.0]), mask)
    assert times.shape == (2, 1, 3, 2, 2)
    assert times[:, 0, 0].abs().max() == 0 and (times[0, 0, 1] == 800).all() and (times[1, 0, 1] == 400).all()
    assert times[0, 0, 2].tolist() == [[400.0, 800.0], [400.0, 800.0]]


def test_latents_say_which_vae_they_are_for(tmp_path):
    tiny.wan_vae().save_pretrained(tmp_path / "vae")
    spec = load_vae(tmp_path / "vae").spec
    for shape, said in (
        ((1, 128, 2, 3, 3), "decode it with the LTX-2 video VAE"),
        ((1, 32, 8, 8), "decode it with DC-AE"),
        ((1, 5, 8, 8), "decode it with the VAE of the model that made it"),
        ((1, 16, 8, 8), "16 channels and frames"),
    ):
        with pytest.raises(ValueError, match=said):
            to_autoencoder(spec, torch.zeros(shape))
