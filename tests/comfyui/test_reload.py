"""ComfyUI 0.33 loads a model once more: for a second card, and without dynamic offload where a prompt has hooks."""

from __future__ import annotations

import drawing
import filming
import in_process
import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def comfy(home, sana_reference, video_references):
    with in_process.comfyui(home):
        import comfy.model_patcher

        if not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"):
            pytest.skip("this ComfyUI loads a model once")
        yield comfy.model_patcher


def another(patcher):
    """What SelectModelDevice and its like make for another card."""
    made = patcher.deepclone_multigpu(CPU)
    assert made.model is not patcher.model
    own, other = (dict(p.model.named_parameters()) for p in (patcher, made))
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert all(own[key].data_ptr() != other[key].data_ptr() for key in own)
    return made


def image(parts):
    model = parts[0]
    if model.model.sana_spec.family.video:
        return filming.ours(parts)
    return drawing.ours(parts, "a red ring") if model.model.sana_spec.family.uses_angles else drawing.flow(parts, "x")


@pytest.mark.parametrize("pipeline", ["tiny", "tiny-video"])
def test_a_model_that_is_loaded_once_more_is_paired_as_the_first(comfy, pipeline):
    """Previews keep their colours, and a prompt of another text encoder is still told."""
    from sana_nodes.host.comfyui.traps import ENCODER

    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline=pipeline)
    made = another(model)
    assert getattr(made.model, ENCODER) == clip.cond_stage_model.fingerprint
    assert made.model.latent_format.previewing.vae() is vae


@pytest.mark.parametrize("pipeline", ["tiny", "tiny-sana", "tiny-video", "tiny-video-ltx2"])
@pytest.mark.parametrize("dtype", ["default", "fp8_e4m3fn"])
def test_models_for_another_card_give_the_same(comfy, pipeline, dtype):
    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline=pipeline, weight_dtype=dtype)
    expected = image((model, clip, vae))
    moved = another(model)
    assert moved.model.sana_spec == model.model.sana_spec
    assert moved.get_model_object("model_sampling").__class__ is model.get_model_object("model_sampling").__class__
    other_clip = clip.clone()
    other_clip.patcher = another(clip.patcher)
    other_clip.cond_stage_model = other_clip.patcher.model
    vae.patcher = another(vae.patcher)
    vae.first_stage_model = vae.patcher.model
    assert drawing.difference(image((moved, other_clip, vae)), expected) < 1e-5


def test_the_flow_shift_of_a_pipeline_comes_along(comfy, home, sana_reference):
    import json

    config = home / "models" / "diffusers" / "tiny-sana" / "scheduler" / "scheduler_config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "flow_shift": 5.0}))
    try:
        model = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")[0]
    finally:
        config.write_text(before)
    assert another(model).get_model_object("model_sampling").shift == 5.0


def test_a_lora_goes_with_it(comfy, home):
    import tiny

    tiny.write_lora(home / "models" / "loras" / "reload.safetensors")
    model, clip, vae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    changed = drawing.call("SanaLoadLora", model=model, lora_name="reload.safetensors", strength=1.0)[0]
    expected = drawing.ours((changed, clip, vae), "a red ring")
    assert drawing.difference(drawing.ours((another(changed), clip, vae), "a red ring"), expected) < 1e-5
    assert drawing.difference(expected, drawing.ours((model, clip, vae), "a red ring")) > 1e-3


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_that_is_offloaded_dynamically_has_a_plain_one_for_hooks(comfy, monkeypatch, part):
    """ComfyUI offloads dynamically on cards alone; its patcher is only said to do so here."""
    loaded = drawing.call("SanaLoadPipeline", pipeline="tiny")[part]
    patcher = loaded if part == 0 else loaded.patcher
    monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    monkeypatch.setattr(comfy, "CoreModelPatcher", lambda *args, **kwargs: pytest.fail("a dynamic one was made"))
    plain = patcher.clone(disable_dynamic=True)
    assert type(plain) is comfy.ModelPatcher and plain.model is not patcher.model


def test_a_clip_that_is_loaded_once_more_encodes_with_what_was_loaded(comfy):
    """SetClipHooks and SelectCLIPDevice of ComfyUI 0.33 give a copy of the CLIP another patcher."""
    clip = drawing.call("SanaLoadPipeline", pipeline="tiny")[1]
    before = drawing.call("SanaEncodePrompt", clip=clip, text="a red ring")[0][0][0]
    made = clip.clone()
    made.patcher = made.patcher.deepclone_multigpu()
    assert made.cond_stage_model is made.patcher.model is not clip.cond_stage_model
    with torch.no_grad():
        made.patcher.model.gemma.norm.weight.add_(0.5)
    assert (drawing.call("SanaEncodePrompt", clip=made, text="a red ring")[0][0][0] - before).abs().max() > 0.01
    assert torch.equal(drawing.call("SanaEncodePrompt", clip=clip, text="a red ring")[0][0][0], before)
