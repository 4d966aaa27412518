"""What each core node must do with SANA: latents, and what changes, merges or saves a MODEL."""

from __future__ import annotations

import json
from pathlib import Path

import drawing
import pytest
import torch
from core_checks import mask_of_the_second_quarter, node, settings
from core_nodes import call, load_nodes, one, same, where_different

# Latents


@node("EmptyLatentImage", "EmptySD3LatentImage")
def empty_latent_image(rig, name):
    """Other models' empty latent: KSampler gives it SANA's channels, and since 0.33 the size that was asked for."""
    import comfyui_version

    side = rig.pixels
    latent = one(name, width=side, height=side, batch_size=1)

    drawn = one("KSampler", seed=1, denoise=1.0, **settings(rig, latent_image=latent))["samples"]
    sized = tuple(int(n) for n in comfyui_version.__version__.split(".")[:2]) >= (0, 33)
    cells = side // (rig.cell if sized else 8)
    frames = (1,) if rig.family == "video" else ()
    assert drawn.shape == (1, rig.shape[1], *frames, cells, cells)


@node("EmptyHunyuanLatentVideo")
def empty_video(rig):
    """16 channels at an 8th of the side and a 4th of the frames: the Wan 2.1 VAE's shape."""
    side = rig.pixels
    latent = one("EmptyHunyuanLatentVideo", width=side, height=side, length=5, batch_size=1)
    assert latent["samples"].shape == rig.shape
    assert same(rig.draw(latent=latent), rig.base)


@node("LatentUpscaleBy")
def latent_upscale_by(rig):
    bigger = one("LatentUpscaleBy", samples=rig.picture(), upscale_method="nearest-exact", scale_by=2.0)
    assert bigger["samples"].shape == (*rig.shape[:-2], rig.shape[-2] * 2, rig.shape[-1] * 2)
    assert same(bigger["samples"][..., ::2, ::2], rig.picture()["samples"])
    rig.draw(latent=bigger, sigmas=rig.sigmas(0.5)[1:])


@node("LatentUpscale")
def latent_upscale(rig):
    given = {"upscale_method": "nearest-exact", "width": 128, "height": 128, "crop": "disabled"}
    resized = one("LatentUpscale", samples=rig.picture(), **given)
    assert resized["samples"].shape == (*rig.shape[:-2], 16, 16)  # cells: 8 pixels each, whatever the model's are


@node("LatentComposite")
def latent_composite(rig):
    small = {"samples": rig.picture(6)["samples"][..., :2, :2]}
    placed = one("LatentComposite", samples_to=rig.picture(), samples_from=small, x=16, y=8, feather=0)["samples"]
    assert where_different(placed, rig.picture()["samples"]).nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


@node("LatentCompositeMasked")
def latent_composite_masked(rig):
    mask = mask_of_the_second_quarter(rig)
    given = {"destination": rig.picture(), "source": rig.picture(6), "x": 0, "y": 0, "resize_source": False}
    placed = one("LatentCompositeMasked", mask=mask, **given)["samples"]
    cells = rig.shape[-1]
    wanted = torch.zeros(cells, cells, dtype=torch.bool)
    wanted[: cells // 2, cells // 4 : cells // 2] = True
    assert torch.equal(where_different(placed, rig.picture()["samples"]), wanted)


@node("LatentBlend")
def latent_blend(rig):
    mixed = one("LatentBlend", samples1=rig.picture(), samples2=rig.picture(6), blend_factor=0.25)["samples"]
    assert same(mixed, 0.25 * rig.picture()["samples"] + 0.75 * rig.picture(6)["samples"])


@node("LatentAdd", "LatentSubtract")
def latent_add(rig, name):
    sign = 1 if name == "LatentAdd" else -1
    out = one(name, samples1=rig.picture(), samples2=rig.picture(6))["samples"]
    assert same(out, rig.picture()["samples"] + sign * rig.picture(6)["samples"])


@node("LatentMultiply")
def latent_multiply(rig):
    assert same(one("LatentMultiply", samples=rig.picture(), multiplier=0.5)["samples"], rig.noise() * 0.5)


@node("LatentInterpolate")
def latent_interpolate(rig):
    def between(ratio):
        return one("LatentInterpolate", samples1=rig.picture(), samples2=rig.picture(6), ratio=ratio)["samples"]

    assert same(between(1.0), rig.noise(5)) and same(between(0.0), rig.noise(6))


@node("LatentConcat")
def latent_concat(rig):
    wide = one("LatentConcat", samples1=rig.picture(), samples2=rig.picture(6), dim="x")["samples"]
    assert torch.equal(wide, torch.cat([rig.noise(5), rig.noise(6)], dim=-1))
    rig.draw(latent={"samples": wide}, sigmas=rig.sigmas(0.5)[1:])


@node("LatentCut")
def latent_cut(rig):
    cut = one("LatentCut", samples=rig.picture(), dim="x", index=2, amount=4)["samples"]
    assert torch.equal(cut, rig.noise()[..., 2:6])


@node("LatentCutToBatch")
def latent_cut_to_batch(rig):
    cut = one("LatentCutToBatch", samples=rig.picture(), dim="x", slice_size=4)["samples"]
    assert cut.shape == (rig.shape[-1] // 4, *rig.shape[1:-1], 4)
    assert torch.equal(cut[1], rig.noise()[0, ..., 4:8])


@node("LatentBatch")
def latent_batch(rig):
    both = one("LatentBatch", samples1=rig.picture(), samples2=rig.picture(6))
    assert torch.equal(both["samples"], torch.cat([rig.noise(5), rig.noise(6)]))
    drawn = rig.draw(latent=both, sigmas=rig.sigmas(0.5)[1:])
    assert drawn.shape[0] == 2


@node("BatchLatentsNode")
def batch_latents(rig):
    both = one("BatchLatentsNode", latents={"latent0": rig.picture(), "latent1": rig.picture(6)})
    assert torch.equal(both["samples"], torch.cat([rig.noise(5), rig.noise(6)]))


@node("LatentFromBatch")
def latent_from_batch(rig):
    """The noise of a picture out of a batch is that which it had in the batch."""
    batch = rig.empty(3)
    second = one("LatentFromBatch", samples=batch, batch_index=1, length=1)
    assert same(rig.once(latent=second), rig.once(latent=batch)[1:2])


@node("RepeatLatentBatch")
def repeat_latent_batch(rig):
    thrice = one("RepeatLatentBatch", samples=rig.picture(), amount=3)
    assert torch.equal(thrice["samples"], rig.noise().repeat(3, *(1,) * (rig.noise().ndim - 1)))
    drawn = rig.draw(latent=thrice, sigmas=rig.sigmas(0.5)[1:])
    assert drawn.shape[0] == 3 and not same(drawn[:1], drawn[1:2], 1e-3)  # each its own noise


@node("LatentBatchSeedBehavior")
def seed_behavior(rig):
    alike = one("LatentBatchSeedBehavior", samples=rig.empty(2), seed_behavior="fixed")
    drawn = rig.once(latent=alike)
    assert same(drawn[:1], drawn[1:])
    other = one("LatentBatchSeedBehavior", samples=rig.empty(2), seed_behavior="random")
    drawn = rig.once(latent=other)
    assert not same(drawn[:1], drawn[1:], 1e-3)


@node("RebatchLatents")
def rebatch(rig):
    parts = one("RebatchLatents", latents=[rig.picture(5, 3)], batch_size=[2])
    assert [part["samples"].shape[0] for part in parts] == [2, 1]


@node("LatentCrop")
def latent_crop(rig):
    """8 pixels a cell, and never fewer than 8 cells from the far edge."""
    big = one("LatentUpscaleBy", samples=rig.picture(), upscale_method="nearest-exact", scale_by=2.0)
    cut = one("LatentCrop", samples=big, width=64, height=64, x=16, y=32)["samples"]
    assert torch.equal(cut, big["samples"][..., 4:12, 2:10])


@node("LatentFlip")
def latent_flip(rig):
    flipped = one("LatentFlip", samples=rig.picture(), flip_method="y-axis: horizontally")["samples"]
    assert torch.equal(flipped, rig.noise().flip(-1))


@node("LatentRotate")
def latent_rotate(rig):
    turned = one("LatentRotate", samples=rig.picture(), rotation="180 degrees")["samples"]
    assert torch.equal(turned, rig.noise().flip(-1, -2))


@node("LatentApplyOperation")
def latent_operation(rig):
    changed = one("LatentApplyOperation", samples=rig.picture(), operation=lambda latent: latent * 2)
    assert torch.equal(changed["samples"], rig.noise() * 2)


@node("LatentOperationTonemapReinhard", "LatentOperationSharpen")
def operation(rig, name):
    given = {"sharpen_radius": 2} if "Sharpen" in name else {}
    out = one("LatentApplyOperation", samples=rig.picture(), operation=one(name, **given))["samples"]
    assert out.shape == rig.shape and torch.isfinite(out).all() and not same(out, rig.noise())


@node("LatentApplyOperationCFG")
def latent_operation_cfg(rig):
    patched = one("LatentApplyOperationCFG", model=rig.model, operation=one("LatentOperationTonemapReinhard"))
    assert not same(rig.guided(patched), rig.guided())


@node("TrimVideoLatent")
def trim_video(rig):
    assert len(rig.shape) == 5
    assert torch.equal(one("TrimVideoLatent", samples=rig.picture(), trim_amount=1)["samples"], rig.noise()[:, :, 1:])


@node("ReplaceVideoLatentFrames")
def replace_frames(rig):
    source = {"samples": rig.noise(6)[:, :, :1]}
    out = one("ReplaceVideoLatentFrames", destination=rig.picture(), source=source, index=1)["samples"]
    assert torch.equal(out[:, :, 1:], source["samples"]) and torch.equal(out[:, :, :1], rig.noise()[:, :, :1])


def keeps_all_but_the_second_quarter(rig, latent, picture, model=None, sigmas=None, **given):
    drawn = rig.draw(model, latent=latent, sigmas=sigmas, **given)
    cells = rig.shape[-1]
    free = torch.zeros(cells, cells, dtype=torch.bool)
    free[: cells // 2, cells // 4 : cells // 2] = True
    assert same(drawn[..., ~free], picture[..., ~free], 1e-4)
    assert not same(drawn[..., free], picture[..., free], 1e-2)


@node("SetLatentNoiseMask")
def noise_mask(rig):
    masked = one("SetLatentNoiseMask", samples=rig.picture(), mask=mask_of_the_second_quarter(rig))
    keeps_all_but_the_second_quarter(rig, masked, rig.noise())


@node("DifferentialDiffusion")
def differential_diffusion(rig):
    """A mask of one half holds for the first half of the run; what is 0 is held to the end."""
    patched = one("DifferentialDiffusion", model=rig.model)
    mask = mask_of_the_second_quarter(rig)
    masked = one("SetLatentNoiseMask", samples=rig.picture(), mask=mask)
    keeps_all_but_the_second_quarter(rig, masked, rig.noise(), patched)
    grey = one("SetLatentNoiseMask", samples=rig.picture(), mask=mask * 0.5)
    seen = []
    patched.set_model_unet_function_wrapper(
        lambda apply, given: (seen.append(given["input"]), apply(given["input"], given["timestep"], **given["c"]))[1]
    )
    rig.draw(patched, latent=grey, sigmas=rig.sigmas(0.9, 0.1))
    keeps_all_but_the_second_quarter(rig, grey, rig.noise(), patched, rig.sigmas(0.9, 0.1))


def photo(rig) -> torch.Tensor:
    frames = rig.shape[2] * 4 - 3 if rig.family == "video" else 1
    return torch.rand(frames, rig.pixels, rig.pixels, 3, generator=torch.Generator().manual_seed(3))


@node("VAEEncodeForInpaint")
def encode_for_inpaint(rig):
    mask = mask_of_the_second_quarter(rig)
    latent = one("VAEEncodeForInpaint", pixels=photo(rig), vae=rig.vae, mask=mask, grow_mask_by=0)
    assert latent["samples"].shape == rig.shape and latent["noise_mask"].shape[-1] == rig.pixels
    keeps_all_but_the_second_quarter(rig, latent, latent["samples"])


@node("InpaintModelConditioning")
def inpaint_conditioning(rig):
    given = {"pixels": photo(rig), "vae": rig.vae, "mask": mask_of_the_second_quarter(rig)}
    led = {"positive": rig.red, "negative": rig.blue}
    positive, negative, latent = call("InpaintModelConditioning", noise_mask=True, **led, **given)
    assert same(latent["samples"], rig.vae.encode(photo(rig)))
    keeps_all_but_the_second_quarter(rig, latent, latent["samples"], positive=positive, negative=negative, cfg=2.0)
    positive, negative, latent = call("InpaintModelConditioning", noise_mask=False, **led, **given)
    with pytest.raises(ValueError, match="for which SANA has no channels: turn its noise_mask on"):
        rig.draw(latent=latent, positive=positive)


@node("VAEEncode", "VAEEncodeTiled")
def vae_encode(rig, name):
    tiled = {"tile_size": 512, "overlap": 64} if name == "VAEEncodeTiled" else {}
    latent = one(name, pixels=photo(rig), vae=rig.vae, **tiled)
    assert latent["samples"].shape == rig.shape
    assert same(latent["samples"], rig.vae.encode(photo(rig)))


@node("VAEDecode", "VAEDecodeTiled")
def vae_decode(rig, name):
    tiled = {"tile_size": 512, "overlap": 64} if name == "VAEDecodeTiled" else {}
    pictures = one(name, samples=rig.picture(), vae=rig.vae, **tiled)
    assert pictures.shape == photo(rig).shape
    assert same(pictures, rig.vae.decode(rig.noise()).reshape(pictures.shape))


@node("SaveLatent", "LoadLatent")
def save_latent(rig, _):
    import folder_paths

    saver = load_nodes()["SaveLatent"]()
    saved = saver.save(rig.picture(), filename_prefix=f"latents/{rig.family}")["ui"]["latents"][0]
    file = Path(folder_paths.get_output_directory()) / saved["subfolder"] / saved["filename"]
    target = Path(folder_paths.get_input_directory()) / f"{rig.family}.latent"
    target.write_bytes(file.read_bytes())
    assert same(one("LoadLatent", latent=target.name)["samples"], rig.noise())


# What changes a MODEL


@node("ModelSamplingSD3")
def model_sampling_sd3(rig):
    shifted = one("ModelSamplingSD3", model=rig.model, shift=7.0)
    rig.draw(shifted)
    own = one("ModelSamplingSD3", model=rig.model, shift=rig.model.get_model_object("model_sampling").shift)
    sigmas = one("BasicScheduler", model=shifted, steps=3, scheduler="simple")
    assert not same(sigmas, one("BasicScheduler", model=rig.model, steps=3, scheduler="simple"))
    assert same(rig.draw(own), rig.base)
    led = {"positive": rig.red, "negative": rig.blue, "latent_image": rig.empty(), "steps": 3, "seed": 1}
    ours = drawing.call("SanaFlowSample", model=shifted, **led)[0]["samples"]
    # core's noise levels begin below 1, where it keeps a share of the empty latent and diffusers keeps none
    assert same(ours, drawing.call("SanaFlowSample", model=rig.model, shift=7.0, **led)[0]["samples"], 5e-3)
    assert not same(ours, drawing.call("SanaFlowSample", model=rig.model, **led)[0]["samples"], 2e-2)

    drawn = one("KSampler", seed=1, denoise=1.0, **settings(rig, steps=3, model=shifted))["samples"]
    assert same(drawn, rig.draw(sigmas=sigmas))


@node(
    "ModelSamplingDiscrete",
    "ModelSamplingContinuousEDM",
    "ModelSamplingContinuousV",
    "ModelSamplingStableCascade",
    "ModelSamplingAuraFlow",
    "ModelSamplingFlux",
    "ModelSamplingLTXV",
    "ModelNoiseScale",
)
def another_model_sampling(rig, name):
    patched = one(name, model=rig.model)
    if rig.family != "sprint":  # our own node asks for the shift before it samples
        led = {"positive": rig.red, "negative": rig.blue, "latent_image": rig.empty()}
        with pytest.raises(ValueError, match="is sampled by flow matching with times up to 1000, not with"):
            drawing.call("SanaFlowSample", model=patched, steps=2, **led)
    rig.draw(patched)


@node(
    "HyperTile",
    "TomePatchModel",
    "PatchModelAddDownscale",
    "FreeU",
    "FreeU_V2",
    "SelfAttentionGuidance",
    "PerturbedAttentionGuidance",
    "NAGuidance",
    "SkipLayerGuidanceDiT",
    "SkipLayerGuidanceDiTSimple",
    "SkipLayerGuidanceSD3",
    "ScaleROPE",
)
def patch_inside(rig, name):
    always = {"start_percent": 0.0, "end_percent": 1.0} if name.startswith("SkipLayer") else {}
    patched = one(name, model=rig.model, **always, **({"scale_x": 2.0} if name == "ScaleROPE" else {}))
    rig.guided(patched)


@node("ModelAttentionBackend")
def attention_backend(rig):
    """Torch's own, by which a MODEL samples anyway."""
    assert same(rig.draw(one("ModelAttentionBackend", model=rig.model, attention="pytorch attention")), rig.base)


@node("HypernetworkLoader")
def hypernetwork(rig):
    """Its patch on self- and cross-attention; the node itself only reads a file."""
    patched = rig.model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, _: (q, k, v))
    patched.set_model_attn2_patch(lambda q, k, v, _: (q, k, v))
    rig.draw(patched)


@node("UNetSelfAttentionMultiply", "UNetCrossAttentionMultiply")
def attention_multiply(rig, name):
    assert same(rig.draw(one(name, model=rig.model, q=1.0, k=1.0, v=1.0, out=1.0)), rig.base)
    assert not same(rig.draw(one(name, model=rig.model, q=1.0, k=1.0, v=0.0, out=1.0)), rig.base)
    key = "diffusion_model.transformer_blocks.0.attn1.to_v.weight"
    assert key in rig.model.model_state_dict()


@node("ModelComputeDtype")
def compute_dtype(rig):
    drawn = rig.draw(one("ModelComputeDtype", model=rig.model, dtype="bf16"))
    assert not same(drawn, rig.base, 1e-6) and same(drawn, rig.base, 0.5)


@node("RescaleCFG")
def rescale_cfg(rig):
    assert same(rig.guided(one("RescaleCFG", model=rig.model, multiplier=0.0)), rig.guided(), 1e-3)
    tamed = rig.guided_once(one("RescaleCFG", model=rig.model, multiplier=1.0), cfg=8.0)
    assert tamed.std() < rig.guided_once(cfg=8.0).std()


@node("CFGZeroStar", "CFGNorm", "Mahiro", "TCFG", "APG", "RenormCFG", "FreSca")
def changed_guidance(rig, name):
    """Guidance is another; where there is none, with cfg 1, so is the picture the same."""
    patched = one(name, model=rig.model, **({"freq_cutoff": 1} if name == "FreSca" else {}))
    assert not same(rig.guided(patched), rig.guided())
    if name not in ("APG", "RenormCFG"):  # these two ask for the negative at cfg 1 too
        assert same(rig.draw(patched), rig.base)


@node("Epsilon Scaling", "TemporalScoreRescaling")
def scaled_prediction(rig, name):
    assert not same(rig.draw(one(name, model=rig.model)), rig.base)


@node("CFGOverride")
def cfg_override(rig):
    patched = one("CFGOverride", model=rig.model, cfg=3.0, start_percent=0.0, end_percent=1.0)
    assert same(rig.guided(patched, cfg=1.5), rig.guided(cfg=3.0))


@node("VideoLinearCFGGuidance", "VideoTriangleCFGGuidance")
def video_guidance(rig, name):
    patched = one(name, model=rig.model, min_cfg=1.0)
    assert rig.guided(patched).shape == rig.shape


@node("EasyCache")
def easy_cache(rig):
    def drawn(threshold, cfg):
        always = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False}
        model = one("EasyCache", model=rig.model, reuse_threshold=threshold, **always)
        counted = rig.count_calls(model)
        try:
            steps = rig.sigmas(*torch.linspace(rig.first, 0.05, 9)[1:].tolist())
            return rig.guided(model, cfg, sigmas=steps), counted.count
        finally:
            counted.hook.remove()

    for cfg in (1.0, 3.0):
        whole, every = drawn(0.0, cfg)
        steps = rig.sigmas(*torch.linspace(rig.first, 0.05, 9)[1:].tolist())
        assert same(whole, rig.guided(cfg=cfg, sigmas=steps))
        shorter, fewer = drawn(3.0, cfg)
        assert fewer < every and not same(shorter, whole)


@node("LazyCache")
def lazy_cache(rig):
    steps = rig.sigmas(*torch.linspace(rig.first, 0.05, 9)[1:].tolist())

    def drawn(threshold):
        always = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False}
        model = one("LazyCache", model=rig.model, reuse_threshold=threshold, **always)
        counted = rig.count_calls(model)
        try:
            return rig.draw(model, sigmas=steps), counted.count
        finally:
            counted.hook.remove()

    whole, every = drawn(0.0)
    assert same(whole, rig.draw(sigmas=steps))
    shorter, fewer = drawn(3.0)
    assert fewer < every and not same(shorter, whole)


def run_in_windows(rig, name: str, latent: dict, length: int) -> tuple[torch.Tensor, list[int]]:
    """A run through windows of ``length`` along the latent's dim 2, and how much of that dim each call saw."""
    wan, seen = name.startswith("Wan"), []
    watched = rig.model.clone()
    watched.set_model_unet_function_wrapper(
        lambda apply, given: (
            seen.append(given["input"].shape[2]),
            apply(given["input"], given["timestep"], **given["c"]),
        )[1]
    )
    given = {"context_length": (length - 1) * 4 + 1 if wan else length, "context_overlap": 4 if wan else 1}
    given |= {} if wan else {"dim": 2}
    if "freenoise" in load_nodes()[name].INPUT_TYPES()["required"]:  # since 0.8
        given["freenoise"] = False
    return rig.draw(one(name, model=watched, **given), latent=latent), seen


def check_windows(rig, name: str, latent: dict) -> None:
    """A window as long as dim 2 changes nothing; shorter ones are what is run."""
    size = latent["samples"].shape[2]
    whole, seen = run_in_windows(rig, name, latent, size)
    assert same(whole, rig.draw(latent=latent)) and set(seen) == {size}
    parted, seen = run_in_windows(rig, name, latent, size // 2 + 1)
    assert parted.shape == whole.shape and max(seen) < size  # 0.33 puts the frame before a window in front of it


@node("ContextWindowsManual", "WanContextWindowsManual")
def context_windows(rig, name):
    """Windows along time."""
    check_windows(rig, name, {"samples": torch.zeros(1, *rig.shape[1:2], 5, *rig.shape[3:])})


@node("TorchCompileModel")
def torch_compile(rig):
    """The tracing alone, which is where a model fails to compile; inductor's C++ takes minutes."""
    compiled = one("TorchCompileModel", model=rig.model, backend="eager")
    assert "torch_compile_kwargs" in compiled.model_options
    assert same(rig.once(compiled), rig.once())


# Merging and saving


def weight_of(patched, key="diffusion_model.transformer_blocks.0.attn1.to_q.weight"):
    """A weight with the MODEL's patches."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    value = patched.model_state_dict()[key].clone()
    patched.unpatch_model()
    comfy.model_management.unload_all_models()
    return value


@node("ModelMergeSimple", "ModelMergeBlocks")
def merge_simple(rig, name):
    def merged(ratio):
        shares = {"ratio": ratio} if name == "ModelMergeSimple" else {"input": ratio, "middle": ratio, "out": ratio}
        return one(name, model1=rig.model, model2=rig.twin, **shares)

    assert same(rig.draw(merged(1.0)), rig.base)
    twin = rig.draw(rig.twin)
    assert not same(twin, rig.base) and same(rig.draw(merged(0.0)), twin)
    half = weight_of(merged(0.5))
    key = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    own, other = (model.model_state_dict()[key] for model in (rig.model, rig.twin))
    assert same(half, (own + other) / 2)
    with pytest.raises(ValueError, match="two MODELs of different architectures cannot be merged"):
        shares = {"ratio": 0.5} if name == "ModelMergeSimple" else {"input": 0.5}
        rig.draw(one(name, model1=rig.model, model2=rig.stranger, **shares))
    with pytest.raises(ValueError, match="two MODELs of different architectures cannot be merged"):
        half = one(name, model1=rig.model, model2=rig.stranger, **shares)
        load_nodes()["ModelSave"]().save(half, filename_prefix="saved/half")


@node("ModelMergeAdd", "ModelMergeSubtract")
def merge_add(rig, name):
    key = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    own, other = (model.model_state_dict()[key].clone() for model in (rig.model, rig.twin))
    wanted = own + other if name == "ModelMergeAdd" else own - other
    scale = {} if name == "ModelMergeAdd" else {"multiplier": 1.0}
    merged = one(name, model1=rig.model, model2=rig.twin, **scale)
    assert same(weight_of(merged), wanted)


def models_folder(kind: str) -> Path:
    import folder_paths

    return Path(folder_paths.models_dir) / kind


@node("ModelSave")
def model_save(rig):
    import folder_paths

    shifted = rig.model
    if rig.family != "sprint":  # a shift of its own leaves no trace in the file
        shifted = one("ModelSamplingSD3", model=rig.model, shift=5.0)
    load_nodes()["ModelSave"]().save(shifted, filename_prefix=f"saved/{rig.family}")
    file = next((Path(folder_paths.get_output_directory()) / "saved").glob(f"{rig.family}_*.safetensors"))
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        assert all(key.startswith("model.diffusion_model.") for key in opened.keys())  # noqa: SIM118
    file.rename(models_folder("diffusion_models") / f"saved-{rig.family}.safetensors")
    loaded = drawing.call("SanaLoadTransformer", model_name=f"saved-{rig.family}.safetensors")[0]
    saved, kept = (model.model.diffusion_model.state_dict() for model in (loaded, rig.model))
    assert saved.keys() == kept.keys() and all(torch.equal(saved[key], value) for key, value in kept.items())
    assert same(rig.draw(loaded), rig.base)
    merged = one("ModelMergeSimple", model1=rig.model, model2=rig.twin, ratio=0.5)
    load_nodes()["ModelSave"]().save(merged, filename_prefix=f"saved/merged-{rig.family}")
    file = next((Path(folder_paths.get_output_directory()) / "saved").glob(f"merged-{rig.family}_*.safetensors"))
    file.rename(models_folder("diffusion_models") / f"merged-{rig.family}.safetensors")
    loaded = drawing.call("SanaLoadTransformer", model_name=f"merged-{rig.family}.safetensors")[0]
    assert same(rig.draw(loaded), rig.draw(merged))


@node("VAESave")
def vae_save(rig):
    import folder_paths

    load_nodes()["VAESave"]().save(rig.vae, filename_prefix=f"saved/vae-{rig.family}")
    file = next((Path(folder_paths.get_output_directory()) / "saved").glob(f"vae-{rig.family}_*.safetensors"))
    folder = models_folder("vae") / f"saved-{rig.family}"
    folder.mkdir(exist_ok=True)
    file.rename(folder / "diffusion_pytorch_model.safetensors")
    config = dict(rig.vae.first_stage_model.autoencoder.config)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))
    loaded = drawing.call("SanaLoadVAE", vae_name=folder.name)[0]
    saved, kept = (vae.first_stage_model.autoencoder.state_dict() for vae in (loaded, rig.vae))
    assert saved.keys() == kept.keys() and all(torch.equal(saved[key], value) for key, value in kept.items())
    assert same(loaded.decode(rig.noise()), rig.vae.decode(rig.noise()))


@node("CLIPSave")
def clip_save(rig):
    load_nodes()["CLIPSave"]().save(rig.clip, filename_prefix="saved/clip")


@node("CheckpointSave")
def checkpoint_save(rig):
    load_nodes()["CheckpointSave"]().save(rig.model, rig.clip, rig.vae, filename_prefix="saved/checkpoint")


@node("CLIPMergeSimple", "CLIPMergeAdd", "CLIPMergeSubtract")
def clip_merge(rig, name):
    shares = {"CLIPMergeSimple": {"ratio": 0.25}, "CLIPMergeAdd": {}, "CLIPMergeSubtract": {"multiplier": 1.0}}[name]
    merged = one(name, clip1=rig.clip, clip2=rig.clip, **shares)
    encoded = one("CLIPTextEncode", clip=merged, text="a red ring")[0][0]
    plain = one("CLIPTextEncode", clip=rig.clip, text="a red ring")[0][0]
    assert same(encoded, plain, 1e-4) == (name == "CLIPMergeSimple")


@node("CLIPAttentionMultiply")
def clip_attention(rig):
    changed = one("CLIPAttentionMultiply", clip=rig.clip, q=1.0, k=1.0, v=0.0, out=1.0)
    encoded = one("CLIPTextEncode", clip=changed, text="a red ring")[0][0]
    assert not same(encoded, one("CLIPTextEncode", clip=rig.clip, text="a red ring")[0][0])
