"""Files to modules: every layout of the issue, what is read from shapes, and what is said of bad files."""

from __future__ import annotations

import json
import sys

import drawing
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from sana_nodes.model_loaders.autoencoders.dc_ae import config_from_shapes as vae_config_from_shapes
from sana_nodes.model_loaders.files import folders, open
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.pipeline import load_pipeline
from sana_nodes.model_loaders.text_encoder import load_text_encoder
from sana_nodes.model_loaders.transformer import config_from_shapes, load_transformer
from sana_nodes.model_loaders.vae import load_vae

sys.path.insert(0, str(tiny.REPOSITORY / "benchmarks"))
import loading


def weights_of(module) -> dict:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(module, weights: dict):
    loaded = module.state_dict()
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(loaded[name], value), name


@pytest.fixture
def folder(tmp_path):
    """Write a module as diffusers does; returns its folder."""

    def write(module, name="model"):
        module.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


SHAPES = [
    {},
    {"num_layers": 1, "num_attention_heads": 5, "num_cross_attention_heads": 5, "cross_attention_dim": 160},
    {"num_attention_heads": 36, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72}
    | {"cross_attention_dim": 1152, "num_layers": 1},
    {"num_attention_heads": 70, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112}
    | {"cross_attention_dim": 2240, "num_layers": 1},
    {"mlp_ratio": 3.3, "caption_channels": 40, "in_channels": 16, "out_channels": 16, "attention_bias": True},
]


@pytest.mark.parametrize("changes", SHAPES, ids=["tiny", "narrow", "0.6B", "1.6B", "odd"])
def test_transformer_file_without_a_config(tmp_path, changes):
    module = tiny.transformer(**changes)
    save_file(weights_of(module), tmp_path / "model.safetensors")
    loaded = load_transformer(tmp_path / "model.safetensors")
    assert_same(loaded.module, weights_of(module))
    read = config_from_shapes(open.open_checkpoint(tmp_path / "model.safetensors"))
    for key, value in read.items():
        if key == "mlp_ratio":
            width = module.config.num_attention_heads * module.config.attention_head_dim
            assert int(value * width) == int(module.config.mlp_ratio * width)
        else:
            assert module.config[key] == value, key
    assert loaded.spec.family.key == "sprint"


def test_transformer_folder_keeps_the_config_that_shapes_do_not_show(folder):
    module = tiny.transformer(num_attention_heads=4, attention_head_dim=16, guidance_embeds_scale=0.2)
    loaded = load_transformer(folder(module))
    assert loaded.module.config.attention_head_dim == 16
    assert loaded.spec.guidance_scale == 0.2
    assert_same(loaded.module, weights_of(module))


VAES = [
    {},
    {"downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"},
    {"encoder_layers_per_block": (2, 1, 1, 3, 1, 1), "decoder_block_out_channels": (8, 16, 16, 32, 32, 32)},
    {"encoder_layers_per_block": (0, 1, 1, 1, 1, 1), "encoder_block_out_channels": (8, 16, 16, 16, 32, 32)}
    | {"decoder_layers_per_block": (0, 1, 1, 1, 1, 1), "decoder_block_out_channels": (8, 16, 16, 16, 32, 32)},
    tiny.LITE,
]


@pytest.mark.parametrize("changes", VAES, ids=["sana", "shuffle", "uneven", "no first stage", "lite"])
def test_vae_file_without_a_config(tmp_path, changes):
    module = tiny.autoencoder(**changes)
    save_file(weights_of(module), tmp_path / "vae.safetensors")
    read = vae_config_from_shapes(open.open_checkpoint(tmp_path / "vae.safetensors"))
    kinds = {k: (v,) * 6 if k.endswith("block_types") and isinstance(v, str) else v for k, v in module.config.items()}
    assert {k: _tuples(v) for k, v in read.items()} == {k: _tuples(kinds[k]) for k in read}
    loaded = load_vae(tmp_path / "vae.safetensors")
    assert_same(loaded.module, weights_of(module))
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, theirs = loaded.module.encode(picture).latent, module.encode(picture).latent
    assert drawing.difference(mine, theirs) < drawing.ROUNDING


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def test_vae_spec_reads_its_scale(folder):
    spec = load_vae(folder(tiny.autoencoder(scaling_factor=0.7))).spec
    assert (spec.gain, spec.offset) == ((1 / 0.7,), (0.0,))
    assert (spec.spatial_ratio, spec.latent_channels) == (32, 32)


def gemma_folder(tmp_path, module, **saving):
    import shutil

    module.save_pretrained(tmp_path / "gemma", **saving)
    shutil.copytree(tiny.DEMO / "tokenizer", tmp_path / "gemma", dirs_exist_ok=True)
    return tmp_path / "gemma"


def test_gemma_folder_in_shards_and_with_a_language_head(tmp_path):
    from transformers import Gemma2ForCausalLM

    base = tiny.text_encoder()
    whole = Gemma2ForCausalLM(base.config)
    whole.model.load_state_dict(base.state_dict())
    path = gemma_folder(tmp_path, whole.eval(), max_shard_size="100KB")
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
    loaded = load_text_encoder(path)
    assert_same(loaded.module, weights_of(base))
    ids = torch.tensor([[2, 400, 300, 10]])
    with torch.no_grad():
        assert torch.allclose(loaded.module(ids)[0], base(ids)[0], atol=drawing.ROUNDING)
    next(path.glob("model-00002-*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        load_text_encoder(path)


def test_gemma_says_what_is_wrong(tmp_path):
    path = gemma_folder(tmp_path, tiny.text_encoder(vocabulary=500))
    with pytest.raises(UnusableFile, match="796 tokens and .* only 500"):
        load_text_encoder(path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        load_text_encoder(path)
    path = gemma_folder(tmp_path, tiny.text_encoder())
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnusableFile, match="tokenizer in .* cannot be read"):
        load_text_encoder(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(UnusableFile, match="model_type llama, not gemma2"):
        load_text_encoder(_with_tokenizer(path))


def _with_tokenizer(path):
    import shutil

    shutil.copytree(tiny.DEMO / "tokenizer", path, dirs_exist_ok=True)
    return path


def test_strictness(folder):
    module = tiny.transformer()
    path = folder(module)
    file = path / "diffusion_pytorch_model.safetensors"
    weights = weights_of(module)
    key = "transformer_blocks.1.attn1.to_q.weight"

    def refused(changed: dict, words: str):
        save_file(changed, file)
        with pytest.raises(UnusableFile, match=words):
            load_transformer(path)

    refused({k: v for k, v in weights.items() if k != key}, f"1 missing .*{key}")
    refused({**weights, "surplus.weight": torch.zeros(1)}, r"1 unknown \(such as surplus.weight\)")
    refused({**weights, key: torch.zeros(64, 63)}, rf"{key} has the shape \[64, 63\] where \[64, 64\]")
    refused({**weights, key: weights[key].to(torch.float64)}, "float64 weights")


def test_files_that_are_not_safetensors(tmp_path, folder):
    path = folder(tiny.transformer())
    file = path / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1000], whole[:20], b"", b"<html>not found</html>", b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(
            UnusableFile, match=rf"diffusion_pytorch_model.safetensors \({len(damaged):,} bytes\) is not"
        ):
            load_transformer(path)
    torch.save({"state_dict": {}}, tmp_path / "sana.pth")
    with pytest.raises(UnusableFile, match="has no tensors"):
        load_transformer(tmp_path / "sana.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_transformer(tmp_path / "absent.safetensors")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no diffusion_pytorch_model.safetensors.*config.json"):
        load_transformer(path)


def test_a_config_of_another_model(folder):
    path = folder(tiny.transformer())
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_layers": 2}))
    with pytest.raises(UnusableFile, match="unknown .such as transformer_blocks.2"):
        load_transformer(path)
    (path / "config.json").write_text(json.dumps({**config, "num_layers": "many"}))
    with pytest.raises(UnusableFile, match="config.json does not describe a SanaTransformer2DModel"):
        load_transformer(path)
    (path / "config.json").write_text("[]")
    with pytest.raises(UnusableFile, match="not a JSON object"):
        load_transformer(path)


STRANGERS = {
    "Stable Diffusion 1 checkpoint": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "Stable Diffusion checkpoint": "model.diffusion_model.input_blocks.0.0.weight",
    "Flux model": "double_blocks.0.img_attn.qkv.weight",
    "LoRA": "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_models_of_other_families_are_named(tmp_path, name):
    save_file({STRANGERS[name]: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    for load in (load_transformer, load_vae):
        with pytest.raises(UnusableFile, match=f"other.safetensors is a {name}, not a"):
            load(tmp_path / "other.safetensors")


def test_a_plain_image_model_is_not_sprint(host, folder):
    plain = load_transformer(folder(tiny.transformer(guidance_embeds=False)))
    assert (plain.spec.family.key, plain.spec.flow_shift, plain.spec.name) == ("image", 3.0, "SANA")
    model = host.model(plain, "default")
    latent = {"samples": torch.zeros(1, 32, 2, 2)}
    with pytest.raises(ValueError, match="is SANA, not SANA-Sprint: sample it with Sana Flow Sample"):
        drawing.call("SanaSCMSample", model=model, positive=[], latent_image=latent)


def test_a_vae_is_no_transformer(folder):
    with pytest.raises(UnusableFile, match="is a DC-AE, not a SANA-Sprint transformer"):
        load_transformer(folder(tiny.autoencoder()))
    with pytest.raises(UnusableFile, match="is a SANA-Sprint transformer, not a DC-AE"):
        load_vae(folder(tiny.transformer(), "other"))


def test_pipeline_folder_lacking_a_part(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no model_index.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "SanaSprintPipeline"}')
    with pytest.raises(FileNotFoundError, match="has no folder transformer, text_encoder, tokenizer, vae"):
        load_pipeline(tmp_path)


def test_names_stay_inside_the_model_folders(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(b"")
    for name in ("../secret.safetensors", "..\\secret.safetensors", str(tmp_path / "secret.safetensors"), ""):
        with pytest.raises(ValueError, match="is not the name of a VAE"):
            folders.find_model([tmp_path / "vae"], name, "VAE")
    with pytest.raises(FileNotFoundError, match=r"no VAE called 'x'; looked in .*vae"):
        folders.find_model([tmp_path / "vae"], "x", "VAE")


def test_an_index_cannot_name_files_elsewhere(folder):
    path = folder(tiny.transformer())
    (path / "diffusion_pytorch_model.safetensors").unlink()
    (path / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(UnusableFile, match="is not a file of its folder"):
        load_transformer(path)


def test_lists_show_files_and_folders_once(home, reference, tmp_path):
    roots = [tmp_path]
    (tmp_path / "tiny").symlink_to(home / "models" / "vae" / "tiny", target_is_directory=True)
    assert folders.list_models(roots) == ["tiny"]
    save_file(weights_of(tiny.autoencoder()), tmp_path / "one.safetensors")
    assert folders.list_models(roots) == ["one.safetensors", "tiny"]
    assert "tiny" in folders.list_folders([home / "models" / "diffusers"], "model_index.json")


def test_weights_are_mapped_not_copied(folder):
    path = folder(tiny.transformer())
    module = load_transformer(path).module
    weights = load_file(path / "diffusion_pytorch_model.safetensors")
    assert_same(module, weights)
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("layout", ["diffusers", "scaled-fp8"])
@pytest.mark.parametrize("name", ["embedded", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def test_loading_a_transformer_takes_its_weights_and_little_more(tmp_path, name, layout):
    """Peak resident memory above the baseline, with every weight read once, against the weights that stay.

    A quarter of the 0.6B model, in the plainest layout and in the one where most is done. The whole of it:
    tests/slow/test_loading.py; every layout: benchmarks/loading.py.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from Linux's /proc")
    path = loading.write(layout, tmp_path, layers=7)
    peak, stays = loading.cost(path, name, str(tiny.COMFYUI))
    assert 0.5 < peak / stays <= loading.LIMIT, f"loading took {peak / stays:.2f} times the weights"


def test_weights_that_are_cast_once_take_their_file_beside_them(tmp_path):
    """Where float32 is computed in: the float32 weights that stay, the file's pages, and little more."""
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from Linux's /proc")
    path = loading.write("diffusers", tmp_path, layers=7)
    peak, stays = loading.cost(path, "embedded", widening=True)
    file = path.stat().st_size
    assert stays > 1.9 * file and peak < (stays + file) * loading.LIMIT


def test_loaders_offer_what_fits_them(host, reference, home, tmp_path_factory):
    """Files of other models are left out; what a header does not tell is offered, so that choosing it says why."""
    from sana_nodes import NODE_CLASS_MAPPINGS

    models = home / "models"
    strangers = {"diffusion_models/vae.safetensors": tiny.autoencoder(), "vae/sana.safetensors": tiny.transformer()}
    strangers["text_encoders/lora.safetensors"] = tiny.image_transformer()
    for name, module in strangers.items():
        save_file(module.state_dict(), models / name)
    save_file({"unknown": torch.zeros(1)}, models / "vae" / "unknown.safetensors")
    prefixed = {f"model.diffusion_model.{key}": value for key, value in tiny.image_transformer().state_dict().items()}
    save_file(prefixed, models / "diffusion_models" / "prefixed.safetensors")
    (models / "vae" / "cut.safetensors").write_bytes(b"\xff" * 9)
    tiny.write_lora(models / "loras" / "offered.safetensors")

    def offered(node, widget):
        return NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"][widget][0]

    transformers = offered("SanaLoadTransformer", "model_name")
    assert {"tiny", "prefixed.safetensors"} <= set(transformers) and "vae.safetensors" not in transformers
    vaes = offered("SanaLoadVAE", "vae_name")
    assert {"tiny", "cut.safetensors"} <= set(vaes) and not {"sana.safetensors", "unknown.safetensors"} & set(vaes)
    encoders = offered("SanaLoadTextEncoder", "encoder_name")
    assert "tiny" in encoders and "lora.safetensors" not in encoders
    assert "offered.safetensors" in offered("SanaLoadLora", "lora_name")
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        drawing.call("SanaLoadVAE", vae_name="cut.safetensors")
    for name in ("vae/cut.safetensors", "vae/unknown.safetensors", *strangers):
        (models / name).unlink()


def test_the_first_of_several_roots_wins_and_all_are_listed(tmp_path):
    for root, name in (("a", "one"), ("b", "one"), ("b", "two")):
        (tmp_path / root).mkdir(exist_ok=True)
        save_file(tiny.autoencoder().state_dict(), tmp_path / root / f"{name}.safetensors")
    roots = [tmp_path / "a", tmp_path / "b", tmp_path / "absent"]
    assert folders.list_models(roots) == ["one.safetensors", "two.safetensors"]
    assert folders.find_model(roots, "one.safetensors", "VAE") == tmp_path / "a" / "one.safetensors"
    assert folders.find_model(roots, "two.safetensors", "VAE") == tmp_path / "b" / "two.safetensors"


def test_a_changed_file_is_looked_at_again(tmp_path):
    from sana_nodes.model_loaders.files.kinds import Kind
    from sana_nodes.model_loaders.files.listing import models_of_kind

    file = tmp_path / "one.safetensors"
    save_file({"unknown": torch.zeros(1)}, file)
    assert models_of_kind([tmp_path], (Kind.DC_AE,)) == []
    save_file(tiny.autoencoder().state_dict(), file)
    assert models_of_kind([tmp_path], (Kind.DC_AE,)) == ["one.safetensors"]
