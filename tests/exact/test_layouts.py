"""Every layout of a file draws what diffusers draws with the same weights, on both hosts."""

from __future__ import annotations

import controlling
import drawing
import layouts
import pytest
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae
from sana_nodes.networks.tiling import Tiling

LIMIT = 1e-4
PROMPT = "a red ring on the left of a blue background"

MODELS = {
    "sana": (tiny.image_transformer, {}),
    "sana 1.5": (tiny.image_transformer, {"qk_norm": "rms_norm_across_heads"}),
    "sprint": (tiny.transformer, {}),
    "2K": (tiny.image_transformer, {"sample_size": 64, "interpolation_scale": 1.0}),
    "4K": (tiny.image_transformer, {"sample_size": 128, "interpolation_scale": 2.0}),
}


def float32(weights: dict) -> dict:
    return {name: value.float() for name, value in weights.items()}


def write(path, weights: dict) -> None:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3}, path)


class Drawn:
    """Our nodes and diffusers' pipelines over one transformer and the tiny text encoder and autoencoder."""

    def __init__(self, host, home, sprint_pipeline, sana_pipeline):
        self.host, self.models = host, home / "models"
        self.pipelines = {True: sprint_pipeline, False: sana_pipeline}

    def difference(self, name: str, network, pipeline_parts=None, weight_dtype="default", **loaders) -> float:
        """Largest difference for the file ``name`` of models/diffusion_models, whose weights ``network`` holds."""
        sprint = network.config.guidance_embeds
        _, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny" if sprint else "tiny-sana")
        model = drawing.call("SanaLoadTransformer", model_name=name, weight_dtype=weight_dtype)[0]
        pipeline = self.pipelines[sprint]
        kept, pipeline.transformer = pipeline.transformer, network
        try:
            if sprint:
                mine, others = drawing.ours((model, clip, vae), PROMPT), drawing.theirs(pipeline, PROMPT)
            else:
                shift = 6.0 if network.config.sample_size == 128 else 3.0
                mine, others = drawing.flow((model, clip, vae), PROMPT), controlling.theirs(pipeline, shift=shift)
        finally:
            pipeline.transformer = kept
        return drawing.difference(mine, others)


@pytest.fixture
def drawn(host, home, reference, sana_reference):
    return Drawn(host, home, reference, sana_reference)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("file", ["nvlabs.pth", "nvlabs.safetensors", "nvlabs-prefixed.safetensors"])
def test_transformers_in_nvlabs_naming(drawn, kind, file):
    make, changes = MODELS[kind]
    network = make(**changes)
    weights = layouts.nvlabs(network.state_dict(), positions=network.config.sample_size**2)
    path = drawn.models / "diffusion_models" / file
    write(path, layouts.prefixed(weights) if "prefixed" in file else weights)
    module = load_transformer(path).module
    assert (module.config.sample_size, module.config.interpolation_scale) == (
        network.config.sample_size,
        network.config.interpolation_scale,
    )
    assert drawn.difference(file, network) < LIMIT


@pytest.mark.parametrize("kind", ["sana", "sprint"])
@pytest.mark.parametrize("file", ["alone.safetensors", "prefixed.safetensors"])
def test_transformers_in_diffusers_naming(drawn, kind, file):
    network = MODELS[kind][0]()
    weights = network.state_dict()
    write(drawn.models / "diffusion_models" / file, layouts.prefixed(weights) if file[0] == "p" else weights)
    assert drawn.difference(file, network) < LIMIT


@pytest.mark.parametrize("kind", ["2K", "4K"])
def test_positions_come_with_a_config_beside_a_file(drawn, kind):
    """A file in diffusers' naming holds no positions; its config under its own name says them."""
    network = MODELS[kind][0](**MODELS[kind][1])
    folder = drawn.models / "diffusion_models"
    save_file(network.state_dict(), folder / "positions.safetensors")
    (folder / "positions.json").write_text(network.to_json_string())
    assert drawn.difference("positions.safetensors", network) < LIMIT
    (folder / "positions.json").unlink()
    assert load_transformer(folder / "positions.safetensors").module.patch_embed.pos_embed is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "mixed"])
@pytest.mark.parametrize("form", ["variant", "shards", "file"])
def test_storage_in_16_bits(drawn, dtype, form):
    """The CPU computes in float32 from weights of any dtype, so diffusers with the same values gives the same."""
    network = tiny.image_transformer()
    for number, parameter in enumerate(network.parameters()):
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype) or (torch.bfloat16, torch.float32)[number % 2]
        parameter.data = parameter.data.to(kind)
    name = f"{form}-{dtype}"
    folder = drawn.models / "diffusion_models" / name
    if form == "file":
        name += ".safetensors"
        save_file(network.state_dict(), drawn.models / "diffusion_models" / name)
    else:
        size = "60KB" if form == "shards" else "10GB"
        network.save_pretrained(folder, variant=None if dtype == "mixed" else dtype, max_shard_size=size)
        indexes = [file.name for file in folder.glob("*.index*.json")]
        variant = "" if dtype == "mixed" else f".{dtype}"
        assert indexes == ([f"diffusion_pytorch_model.safetensors.index{variant}.json"] if form == "shards" else [])
    assert drawn.difference(name, network.float(), weight_dtype="fp32") < LIMIT


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("everything", [False, True], ids=["matrices", "everything"])
def test_plain_fp8(drawn, dtype, everything):
    """Values of 8 bits are exact in every computation dtype: the file draws what diffusers draws with them."""
    network = tiny.image_transformer()
    weights = {n: v.to(dtype) if everything or v.ndim > 1 else v for n, v in network.state_dict().items()}
    save_file(weights, drawn.models / "diffusion_models" / "fp8.safetensors")
    network.load_state_dict(float32(weights))
    assert drawn.difference("fp8.safetensors", network) < LIMIT


SCALED = {
    "e4m3fn": {},
    "e5m2": {"dtype": torch.float8_e5m2},
    "newer names": {"suffix": "weight_scale"},
    "a scale for each row": {"rows": True},
}


@pytest.mark.parametrize("how", SCALED)
@pytest.mark.parametrize("naming", ["diffusers", "nvlabs", "prefixed"])
def test_scaled_fp8(drawn, how, naming):
    """The product of weight and scale is diffusers' weight; computing it in float32 leaves the same bound."""
    network = tiny.image_transformer()
    file = {"diffusers": dict, "nvlabs": layouts.nvlabs, "prefixed": dict}[naming](network.state_dict())
    file = layouts.scaled_fp8(file, **SCALED[how])
    meant = layouts.true_values(file)
    save_file(layouts.prefixed(file) if naming == "prefixed" else file, drawn.models / "diffusion_models" / "s.sft")
    if naming == "nvlabs":
        save_file(meant, drawn.models / "diffusion_models" / "meant.safetensors")
        meant = load_transformer(drawn.models / "diffusion_models" / "meant.safetensors").module.state_dict()
    network.load_state_dict(meant)
    assert drawn.difference("s.sft", network) < LIMIT


def test_scales_that_do_not_fit(tmp_path):
    file = layouts.scaled_fp8(tiny.image_transformer().state_dict())
    name = "transformer_blocks.1.attn1.to_q."
    for change, said in (
        (
            {f"{name}scale_weight": torch.ones(3)},
            r"has scales of the shape \[3\], which do not fit its \[64, 64\] weights",
        ),
        ({f"{name}weight": torch.zeros(64, 64)}, "has a scale and its dtype is torch.float32"),
        ({f"{name}weight_scale": torch.ones(())}, "has two scales"),
        ({"absent.scale_weight": torch.ones(())}, "has no absent.weight to scale"),
    ):
        save_file({**file, **change}, tmp_path / "m.safetensors")
        with pytest.raises(UnusableFile, match=said):
            load_transformer(tmp_path / "m.safetensors")
    unmarked = {**tiny.image_transformer().state_dict(), f"{name}scale_input": torch.ones(())}
    save_file(unmarked, tmp_path / "m.safetensors")
    with pytest.raises(UnusableFile, match=r"1 unknown \(such as .*scale_input"):
        load_transformer(tmp_path / "m.safetensors")


@pytest.mark.parametrize("file", ["control.pth", "control.safetensors"])
def test_controlnet_in_nvlabs_naming(host, home, sana_reference, file):
    weights = layouts.nvlabs_controlnet(tiny.controlnet().state_dict(), tiny.image_transformer().state_dict())
    write(home / "models" / "controlnet" / file, weights)
    parts = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    image = controlling.image(96, 64)
    mine = drawing.flow(parts, PROMPT, "", 96, 64, led=controlling.controlled(host, image, parts[2], file))
    assert drawing.difference(mine, controlling.by_controlnet(sana_reference, image)) < LIMIT
    with pytest.raises(UnusableFile, match="is a SANA ControlNet in NVlabs' naming, not a"):
        load_transformer(home / "models" / "controlnet" / file)


@pytest.mark.parametrize("model", ["sana", "lite"])
@pytest.mark.parametrize("file", ["diffusers.safetensors", "o.safetensors", "o.pth", "o.pt"])
def test_dc_ae(host, home, reference, model, file):
    vae = tiny.autoencoder(**(tiny.LITE if model == "lite" else {}))
    weights = vae.state_dict() if file[0] == "d" else layouts.original_dc_ae(vae.state_dict())
    path = home / "models" / "vae" / file
    write(path, weights)
    try:
        parts = drawing.call("SanaLoadPipeline", pipeline="tiny")
        loaded = drawing.call("SanaLoadVAE", vae_name=file)[0]
        kept, reference.vae = reference.vae, vae
        try:
            expected = drawing.theirs(reference, PROMPT)
        finally:
            reference.vae = kept
        assert drawing.difference(drawing.ours((*parts[:2], loaded), PROMPT), expected) < LIMIT
        image = controlling.image(96, 64)
        encoded = drawing.core("VAEEncode", host, pixels=image, vae=loaded)[0]["samples"]
        with torch.no_grad():
            latent = vae.encode(image.movedim(-1, 1) * 2 - 1).latent * vae.config.scaling_factor
        assert (encoded - latent).abs().max() < LIMIT
    finally:
        path.unlink()


def test_fp8_of_other_parts(host, home, sana_reference):
    """An autoencoder and a ControlNet stored in plain fp8 too: exact, as test_plain_fp8 says."""
    network, vae = tiny.controlnet(), tiny.autoencoder()
    for module, place in ((network, "controlnet"), (vae, "vae")):
        weights = {n: v.to(torch.float8_e4m3fn) for n, v in module.state_dict().items()}
        module.load_state_dict(float32(weights))
        save_file(weights, home / "models" / place / "fp8.safetensors")
    model, clip, _ = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    parts = model, clip, drawing.call("SanaLoadVAE", vae_name="fp8.safetensors")[0]
    (home / "models" / "vae" / "fp8.safetensors").unlink()
    image = controlling.image(96, 64)
    mine = drawing.flow(parts, PROMPT, "", 96, 64, led=controlling.controlled(host, image, parts[2], "fp8.safetensors"))
    kept, sana_reference.vae = sana_reference.vae, vae
    try:
        expected = controlling.by_controlnet(sana_reference, image, network=network)
    finally:
        sana_reference.vae = kept
    assert drawing.difference(mine, expected) < LIMIT


def test_dc_ae_lite_in_windows(tmp_path):
    """Its decoder, which ends in a resampling, gives the whole picture's pixels in windows too."""
    vae = tiny.autoencoder(**tiny.LITE)
    save_file(layouts.original_dc_ae(vae.state_dict()), tmp_path / "lite.safetensors")
    module = load_vae(tmp_path / "lite.safetensors").module
    latent = torch.randn(1, 32, 5, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latent).sample
    windows = Tiling(64, torch.device("cpu"), torch.float32)
    assert drawing.difference(windows.decode(module, latent), whole) < LIMIT


def test_the_names_of_files_that_others_published():
    """Keys that diffusers' single-file loaders, its conversion scripts and NVlabs' sources name."""
    shape = {"num_layers": 1}
    sprint = layouts.nvlabs(tiny.transformer(**shape).state_dict())
    control = layouts.nvlabs_controlnet(tiny.controlnet().state_dict(), tiny.image_transformer(**shape).state_dict())
    dc_ae = layouts.original_dc_ae(tiny.autoencoder().state_dict())
    lite = layouts.original_dc_ae(tiny.autoencoder(**tiny.LITE).state_dict())
    for names, known in (
        (sprint, "x_embedder.proj.weight y_embedder.y_proj.fc1.bias t_embedder.mlp.2.weight cfg_embedder.mlp.0.weight"),
        (sprint, "t_block.1.bias attention_y_norm.weight final_layer.linear.bias final_layer.scale_shift_table"),
        (sprint, "blocks.0.attn.qkv.weight blocks.0.attn.q_norm.weight blocks.0.attn.proj.bias pos_embed"),
        (sprint, "blocks.0.cross_attn.kv_linear.bias blocks.0.cross_attn.k_norm.weight logvar_linear.weight"),
        (sprint, "blocks.0.mlp.inverted_conv.conv.bias blocks.0.mlp.point_conv.conv.weight blocks.0.scale_shift_table"),
        (control, "controlnet.0.before_proj.weight controlnet.1.after_proj.bias blocks.0.attn.qkv.weight"),
        (control, "controlnet.0.copied_block.attn.qkv.weight controlnet.1.copied_block.mlp.depth_conv.conv.weight"),
        (dc_ae, "encoder.project_in.conv.bias decoder.stages.1.op_list.0.main.conv.conv.bias"),
        (dc_ae, "encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight decoder.project_in.main.conv.weight"),
        (dc_ae, "decoder.stages.4.op_list.1.local_module.main.point_conv.norm.bias decoder.project_out.op_list.0.bias"),
        (dc_ae, "encoder.stages.0.op_list.0.main.conv2.norm.weight decoder.project_out.op_list.2.conv.weight"),
        (lite, "decoder.project_out.op_list.2.conv.conv.weight"),
    ):
        assert set(known.split()) <= set(names)


def test_fused_weights_of_pictures_are_views(tmp_path):
    save_file(layouts.nvlabs(tiny.transformer().state_dict()), tmp_path / "m.safetensors")
    attention = load_transformer(tmp_path / "m.safetensors").module.transformer_blocks[1].attn1
    for first, second in ((attention.to_q, attention.to_k), (attention.to_k, attention.to_v)):
        size = first.weight.numel() * first.weight.element_size()
        assert second.weight.data_ptr() - first.weight.data_ptr() == size


def test_strictness_in_other_namings(tmp_path):
    transformer = layouts.nvlabs(tiny.transformer().state_dict())
    control = layouts.nvlabs_controlnet(tiny.controlnet().state_dict(), tiny.image_transformer().state_dict())
    dc_ae = layouts.original_dc_ae(tiny.autoencoder().state_dict())
    cases = (
        (load_transformer, transformer, "blocks.1.attn.qkv.weight", "transformer_blocks.1.attn1.to_k.weight"),
        (load_controlnet, control, "controlnet.1.after_proj.bias", "controlnet_blocks.1.bias"),
        (load_vae, dc_ae, "encoder.project_out.main.op_list.0.conv.bias", "encoder.conv_out.bias"),
    )
    path = tmp_path / "m.safetensors"
    for load, weights, old, new in cases:
        wrong = torch.zeros(weights[old].shape[0] * 2, *weights[old].shape[1:])
        for changed, said in (
            ({k: v for k, v in weights.items() if k != old}, rf"missing \(such as {new} \["),
            ({**weights, "encoder.extra.weight": torch.zeros(1)}, "the key encoder.extra.weight does not belong to a"),
            ({**weights, old: wrong}, r"has the shape \[.*\] where \[.*\] was expected"),
        ):
            save_file(changed, path)
            with pytest.raises(UnusableFile, match=f"m.safetensors.*{said}"):
                load(path)


def test_two_keys_that_become_one(tmp_path):
    dc_ae = layouts.original_dc_ae(tiny.autoencoder().state_dict())
    twice = {"encoder.project_out.0.conv.bias": dc_ae["encoder.project_out.main.op_list.0.conv.bias"].clone()}
    save_file({**dc_ae, **twice}, tmp_path / "m.safetensors")
    with pytest.raises(UnusableFile, match=r"the keys encoder.project_out.* both map to encoder.conv_out.bias"):
        load_vae(tmp_path / "m.safetensors")
    folder = tmp_path / "transformer"
    network = tiny.transformer()
    network.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("*.safetensors"))
    shards[-1].write_bytes(shards[0].read_bytes())
    with pytest.raises(UnusableFile, match="and so has another file of "):
        load_transformer(folder)


def test_a_checkpoint_that_holds_more_than_the_transformer(tmp_path):
    weights = layouts.prefixed(tiny.transformer().state_dict())
    twice = {"patch_embed.proj.bias": torch.zeros(64)}
    for more, said in (
        ({"first_stage_model.encoder.weight": torch.zeros(1)}, r"1 unknown \(such as first_stage_model"),
        (twice, "the keys .* both map to patch_embed.proj.bias"),
    ):
        save_file({**weights, **more}, tmp_path / "m.safetensors")
        with pytest.raises(UnusableFile, match=said):
            load_transformer(tmp_path / "m.safetensors")


@pytest.mark.parametrize("shape", [(1, 5, 64), (4, 64), (1, 0, 64)], ids=str)
def test_positions_that_are_no_square(tmp_path, shape):
    weights = {**layouts.nvlabs(tiny.transformer().state_dict()), "pos_embed": torch.zeros(shape)}
    save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(UnusableFile, match="pos_embed has the shape"):
        load_transformer(tmp_path / "m.safetensors")
