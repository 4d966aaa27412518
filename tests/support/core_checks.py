"""What each core node must do with SANA, by the node's name: prompts, schedules, samplers and guiders.

A check takes a Rig. It passes where the node does what it says, and lets a refusal through.
"""

from __future__ import annotations

import math

import drawing
import pytest
import torch
from core_nodes import call, load_nodes, one, same, where_different

CHECKS = {}


def into(table: dict):
    """A decorator for the check of one core node, or of several that are alike: it is called with each name."""

    def of(*names: str):
        def register(check):
            for name in names:
                assert name not in table, f"{name} has two checks"
                table[name] = lambda rig, name=name: check(rig, name) if len(names) > 1 else check(rig)
            return check

        return register

    return of


node = into(CHECKS)


def mean(*tensors):
    return torch.stack(tensors).mean(0)


# Prompts


@node("CLIPTextEncode")
def clip_text_encode(rig):
    encoded = one("CLIPTextEncode", clip=rig.clip, text="a red ring")
    ours = drawing.call("SanaEncodePrompt", clip=rig.clip, text="a red ring")[0]
    assert same(encoded[0][0], ours[0][0])


@node("CLIPSetLastLayer")
def clip_set_last_layer(rig):
    one("CLIPTextEncode", clip=one("CLIPSetLastLayer", clip=rig.clip, stop_at_clip_layer=-2), text="a red ring")


@node(
    "CLIPTextEncodeSDXL", "CLIPTextEncodeSD3", "CLIPTextEncodeFlux", "CLIPTextEncodeHunyuanDiT", "CLIPTextEncodeHiDream"
)
def encode_for_another_model(rig, name):
    texts = {"clip_l", "clip_g", "t5xxl", "text_g", "text_l", "bert", "mt5xl", "llama", "text"}
    wanted = load_nodes()[name].INPUT_TYPES()["required"]
    one(name, clip=rig.clip, **{key: "a red ring" for key in wanted if key in texts})


@node("ConditioningCombine")
def combine(rig):
    both = one("ConditioningCombine", conditioning_1=rig.red, conditioning_2=rig.blue)
    red, blue = rig.once(positive=rig.red), rig.once(positive=rig.blue)
    assert not same(red, blue, 1e-3)
    assert same(rig.once(positive=both), mean(red, blue))


@node("ConditioningAverage")
def average(rig):
    def between(weight):
        return one(
            "ConditioningAverage",
            conditioning_to=rig.red,
            conditioning_from=rig.blue,
            conditioning_to_strength=weight,
        )

    assert same(between(1.0)[0][0], rig.red[0][0], 1e-6) and same(between(0.0)[0][0], rig.blue[0][0], 1e-6)
    assert same(between(0.25)[0][0], 0.25 * rig.red[0][0] + 0.75 * rig.blue[0][0])
    assert same(rig.draw(positive=between(1.0)), rig.base)
    assert not same(rig.draw(positive=between(0.5)), rig.base)


@node("ConditioningConcat")
def concat(rig):
    both = one("ConditioningConcat", conditioning_to=rig.red, conditioning_from=rig.blue)
    assert torch.equal(both[0][0], torch.cat([rig.red[0][0], rig.blue[0][0]], dim=1))
    assert not same(rig.draw(positive=both), rig.base)


@node("ConditioningMultiply")
def multiply(rig):
    halved = one("ConditioningMultiply", conditioning=rig.red, multiplier=0.5)
    assert same(halved[0][0], rig.red[0][0] * 0.5)
    assert not same(rig.draw(positive=halved), rig.base)


@node("ConditioningZeroOut")
def zero_out(rig):
    nothing = one("ConditioningZeroOut", conditioning=rig.red)
    assert torch.count_nonzero(nothing[0][0]) == 0 and nothing[0][0].shape == rig.red[0][0].shape
    assert not same(rig.draw(positive=nothing), rig.base)


@node("ConditioningSetTimestepRange")
def timestep_range(rig):
    early = one("ConditioningSetTimestepRange", conditioning=rig.red, start=0.0, end=0.6)
    late = one("ConditioningSetTimestepRange", conditioning=rig.blue, start=0.6, end=1.0)
    both = one("ConditioningCombine", conditioning_1=early, conditioning_2=late)
    seen = rig.prompts_by_step(both)
    wanted = [rig.red, rig.red, rig.blue]
    assert [torch.equal(prompt, one[0][0]) for (_, prompt), one in zip(seen, wanted, strict=True)] == [True] * 3


def acts_only_in_the_second_quarter(rig, area):
    """A second prompt on a quarter of the side, which begins at a quarter, and above on the upper half."""
    both = one("ConditioningCombine", conditioning_1=rig.red, conditioning_2=area)
    changed = where_different(rig.once(positive=both), rig.once())
    cells = rig.shape[-1]
    wanted = torch.zeros(cells, cells, dtype=torch.bool)
    wanted[: cells // 2, cells // 4 : cells // 2] = True
    assert torch.equal(changed, wanted)


@node("ConditioningSetArea")
def area(rig):
    side = rig.pixels
    placed = {"width": side // 4, "height": side // 2, "x": side // 4, "y": 0, "strength": 1.0}
    acts_only_in_the_second_quarter(rig, one("ConditioningSetArea", conditioning=rig.blue, **placed))


@node("ConditioningSetAreaPercentage")
def area_percentage(rig):
    placed = {"width": 0.25, "height": 0.5, "x": 0.25, "y": 0.0, "strength": 1.0}
    acts_only_in_the_second_quarter(rig, one("ConditioningSetAreaPercentage", conditioning=rig.blue, **placed))


@node("ConditioningSetAreaPercentageVideo")
def area_percentage_video(rig):
    placed = {"width": 0.25, "height": 0.5, "temporal": 1.0, "x": 0.25, "y": 0.0, "z": 0.0, "strength": 1.0}
    acts_only_in_the_second_quarter(rig, one("ConditioningSetAreaPercentageVideo", conditioning=rig.blue, **placed))


@node("ConditioningSetAreaStrength")
def area_strength(rig):
    strong = one("ConditioningSetAreaStrength", conditioning=rig.blue, strength=3.0)
    both = one("ConditioningCombine", conditioning_1=rig.red, conditioning_2=strong)
    red, blue = rig.once(positive=rig.red), rig.once(positive=rig.blue)
    assert same(rig.once(positive=both), (red + 3 * blue) / 4)


def mask_of_the_second_quarter(rig):
    side = rig.pixels
    mask = torch.zeros(1, side, side)
    mask[:, : side // 2, side // 4 : side // 2] = 1.0
    return mask


@node("ConditioningSetMask")
def set_mask(rig):
    given = {"mask": mask_of_the_second_quarter(rig), "strength": 1.0, "set_cond_area": "default"}
    acts_only_in_the_second_quarter(rig, one("ConditioningSetMask", conditioning=rig.blue, **given))


@node("ConditioningSetProperties")
def set_properties(rig):
    given = {"strength": 1.0, "set_cond_area": "default", "mask": mask_of_the_second_quarter(rig)}
    acts_only_in_the_second_quarter(rig, one("ConditioningSetProperties", cond_NEW=rig.blue, **given))


@node("ConditioningSetPropertiesAndCombine")
def set_properties_and_combine(rig):
    given = {"strength": 1.0, "set_cond_area": "default"}
    both = one("ConditioningSetPropertiesAndCombine", cond=rig.red, cond_NEW=rig.blue, **given)
    assert same(rig.once(positive=both), mean(rig.once(), rig.once(positive=rig.blue)))


@node("ConditioningSetDefaultCombine")
def set_default_combine(rig):
    mask = mask_of_the_second_quarter(rig)
    given = {"mask": mask, "strength": 1.0, "set_cond_area": "default"}
    some = one("ConditioningSetMask", conditioning=rig.red, **given)
    drawn = rig.once(positive=one("ConditioningSetDefaultCombine", cond=some, cond_DEFAULT=rig.blue))
    inside = torch.zeros(rig.shape[-1], rig.shape[-1], dtype=torch.bool)
    inside[: rig.shape[-1] // 2, rig.shape[-1] // 4 : rig.shape[-1] // 2] = True
    assert same(drawn[..., inside], rig.once()[..., inside])
    assert same(drawn[..., ~inside], rig.once(positive=rig.blue)[..., ~inside])


@node("FluxGuidance")
def flux_guidance(rig):
    encoded = rig.encode("a red ring", guidance_scale=7.0)
    given = one("FluxGuidance", conditioning=rig.red, guidance=7.0)
    assert same(rig.draw(positive=given), rig.draw(positive=encoded))
    assert not same(rig.draw(positive=given), rig.base)


@node("FluxDisableGuidance")
def flux_disable_guidance(rig):
    strong = rig.encode("a red ring", guidance_scale=7.0)
    plain = one("FluxDisableGuidance", conditioning=strong)
    assert same(rig.draw(positive=plain), rig.draw(positive=rig.encode("a red ring", guidance_scale=4.5)))
    assert not same(rig.draw(positive=plain), rig.draw(positive=strong))


@node("ReferenceLatent")
def reference_latent(rig):
    rig.draw(positive=one("ReferenceLatent", conditioning=rig.red, latent=rig.picture()))


@node("unCLIPConditioning")
def unclip(rig):
    seen = {"clip_vision_output": object(), "strength": 1.0, "noise_augmentation": 0.0}
    rig.draw(positive=one("unCLIPConditioning", conditioning=rig.red, **seen))


@node("GLIGENTextBoxApply")
def gligen(rig):

    import comfy.model_patcher

    class Gligen(torch.nn.Module):
        """As much of one as sampling asks for."""

        def set_position(self, *_):
            return lambda x: x

    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(Gligen(), load_device=cpu, offload_device=cpu)
    box = {"text": "a ring", "width": 64, "height": 64, "x": 0, "y": 0}
    given = one("GLIGENTextBoxApply", conditioning_to=rig.red, clip=rig.clip, gligen_textbox_model=patcher, **box)
    rig.draw(positive=given)


# Schedules


@node("BasicScheduler", "BetaSamplingScheduler")
def schedule_of_the_model(rig, name):
    sigmas = one(name, model=rig.model, steps=3, **({"scheduler": "simple"} if name == "BasicScheduler" else {}))
    assert sigmas.shape == (4,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert sigmas[0] == pytest.approx(rig.first, abs=1e-4)
    rig.draw(sigmas=sigmas)


@node("KarrasScheduler", "ExponentialScheduler", "PolyexponentialScheduler", "LaplaceScheduler")
def free_schedule(rig, name):
    fitting = one(name, steps=3, sigma_max=rig.first, sigma_min=0.1)
    rig.draw(sigmas=fitting)
    for_others = one(name, steps=3)  # from 14.6
    with pytest.raises(ValueError, match="SANA-Sprint's are angles|the noise levels of SANA and SANA-Video go from 1"):
        rig.draw(sigmas=for_others)


@node("VPScheduler", "AlignYourStepsScheduler", "GITSScheduler")
def schedule_of_another_model(rig, name):
    rig.draw(sigmas=one(name))


@node("SDTurboScheduler")
def sd_turbo_scheduler(rig):
    sigmas = one("SDTurboScheduler", model=rig.model, steps=2)
    expected = rig.model.get_model_object("model_sampling").sigma(torch.tensor([999.0, 899.0]))
    assert same(sigmas[:2], expected)
    rig.draw(sigmas=sigmas)


@node("OptimalStepsScheduler", "LTXVScheduler", "Flux2Scheduler", "Ideogram4Scheduler")
def schedule_of_noise_levels(rig, name):
    sigmas = one(name)
    assert 0.9 < sigmas[0] <= 1 and sigmas[-1] == 0
    rig.draw(sigmas=sigmas[-4:])


@node("ManualSigmas")
def manual_sigmas(rig):
    text = ", ".join(str(value) for value in rig.sigmas(0.9, 0.5).tolist())
    assert same(rig.draw(sigmas=one("ManualSigmas", sigmas=text)), rig.base)


@node("SplitSigmas", "SplitSigmasDenoise")
def split_sigmas(rig, name):
    whole = rig.sigmas(0.9)
    where = {"step": 1} if name == "SplitSigmas" else {"denoise": 0.5}
    high, low = call(name, sigmas=whole, **where)
    assert same(high, whole[:2]) and same(low, whole[1:])
    half = rig.draw(sigmas=high)
    chained = rig.draw(sigmas=low, latent={"samples": half}, noise=one("DisableNoise"))
    assert same(chained, rig.draw(sigmas=whole))


@node("FlipSigmas")
def flip_sigmas(rig):
    rising = one("FlipSigmas", sigmas=torch.tensor([0.5, 0.3, 0.0]))
    assert same(rising, torch.tensor([0.0001, 0.3, 0.5]))
    picture = rig.picture()
    unsampled = rig.draw(sigmas=rising, latent=picture, noise=one("DisableNoise"))
    assert not same(unsampled, picture["samples"], 1e-2)


@node("SetFirstSigma")
def set_first_sigma(rig):
    changed = one("SetFirstSigma", sigmas=rig.sigmas(0.9, 0.5), sigma=0.95)
    assert same(changed, torch.tensor([0.95, 0.9, 0.5, 0.0]))
    rig.draw(sigmas=changed)


@node("ExtendIntermediateSigmas")
def extend_sigmas(rig):
    more = one("ExtendIntermediateSigmas", sigmas=rig.sigmas(0.5), steps=2, start_at_sigma=-1.0, end_at_sigma=0.0)
    assert len(more) > 3 and (more.diff() < 0).all()
    rig.draw(sigmas=more)


@node("SamplingPercentToSigma")
def percent_to_sigma(rig):
    sigma = one("SamplingPercentToSigma", model=rig.model, sampling_percent=0.5, return_actual_sigma=False)
    shift = getattr(rig.model.get_model_object("model_sampling"), "shift", None)
    expected = 1.5708 / 2 if shift is None else shift * 0.5 / (1 + (shift - 1) * 0.5)
    assert sigma == pytest.approx(expected, abs=1e-4)
    start = one("SamplingPercentToSigma", model=rig.model, sampling_percent=0.0, return_actual_sigma=True)
    assert start == pytest.approx(rig.first, abs=1e-4)


# Samplers


def settings(rig, steps=2, **changed):
    chosen = {"steps": steps, "cfg": 1.0, "sampler_name": rig.sampler_name, "scheduler": "simple"}
    led = {"model": rig.model, "positive": rig.red, "negative": rig.blue, "latent_image": rig.empty()}
    return {**chosen, **led, **changed}


@node("KSampler")
def ksampler(rig):
    drawn = one("KSampler", seed=1, denoise=1.0, **settings(rig))["samples"]
    schedule = one("BasicScheduler", model=rig.model, steps=2, scheduler="simple")
    assert same(drawn, rig.draw(sigmas=schedule))
    if rig.family == "sprint":
        with pytest.raises(ValueError, match="SANA-Sprint's sigmas are angles, which euler reads as noise levels"):
            one("KSampler", seed=1, denoise=1.0, **settings(rig, sampler_name="euler"))


@node("KSamplerAdvanced")
def ksampler_advanced(rig):
    whole = one("KSampler", seed=1, denoise=1.0, **settings(rig))["samples"]
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 1, "return_with_leftover_noise": "enable"}
    rest = {"add_noise": "disable", "start_at_step": 1, "end_at_step": 9, "return_with_leftover_noise": "disable"}
    half = one("KSamplerAdvanced", noise_seed=1, **first, **settings(rig))
    done = one("KSamplerAdvanced", noise_seed=1, **rest, **settings(rig, latent_image=half))
    assert same(done["samples"], whole)


@node("KSamplerSelect")
def ksampler_select(rig):
    if rig.family == "sprint":
        rig.draw(sampler=one("KSamplerSelect", sampler_name="lcm"))
        for name in ("euler", "euler_ancestral", "dpmpp_2m", "uni_pc", "ddim", "dpm_fast"):
            with pytest.raises(ValueError, match="SANA-Sprint's sigmas are angles"):
                rig.draw(sampler=one("KSamplerSelect", sampler_name=name))
        return
    for name in ("euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm", "uni_pc", "ddim", "res_multistep"):
        assert same(*as_cores_own(rig, one("KSamplerSelect", sampler_name=name)))
    with pytest.raises(ValueError, match="ddpm does not support flow matching"):
        rig.draw(sampler=one("KSamplerSelect", sampler_name="ddpm"))


def as_cores_own(rig, sampler):
    """A picture by a sampler, and the same by ComfyUI's own flow matching in place of ours."""
    drawn = rig.draw(sampler=sampler, negative=rig.blue, cfg=1.5)
    assert rig.family != "sprint", "a sampler that takes angles for noise levels was let through"
    shift = rig.model.get_model_object("model_sampling").shift
    core = one("ModelSamplingSD3", model=rig.model, shift=shift)
    return drawn, rig.draw(core, sampler=sampler, negative=rig.blue, cfg=1.5)


@node(
    "SamplerEulerAncestral",
    "SamplerEulerAncestralCFGPP",
    "SamplerEulerCFGpp",
    "SamplerDPMPP_2M_SDE",
    "SamplerDPMPP_3M_SDE",
    "SamplerDPMPP_SDE",
    "SamplerDPMPP_2S_Ancestral",
    "SamplerER_SDE",
    "SamplerSEEDS2",
    "SamplerLMS",
    "SamplerDPMAdaptative",
)
def sampler_node(rig, name):
    assert same(*as_cores_own(rig, one(name)))


@node("SamplerSASolver")
def sampler_sa_solver(rig):
    assert same(*as_cores_own(rig, one("SamplerSASolver", model=rig.model, use_pece=False, simple_order_2=False)))


@node("SamplerLCM")
def sampler_lcm(rig):
    plain = {"s_noise": 1.0, "s_noise_end": 1.0, "noise_clip_std": 0.0}
    drawn = rig.draw(sampler=one("SamplerLCM", **plain))
    assert same(drawn, rig.draw(sampler=one("KSamplerSelect", sampler_name="lcm")))


@node("SamplerLCMUpscale")
def sampler_lcm_upscale(rig):
    rig.draw(sampler=one("SamplerLCMUpscale"))


@node("SamplerCustom")
def sampler_custom(rig):
    given = settings(rig)
    drawn = one(
        "SamplerCustom",
        **{key: given[key] for key in ("model", "positive", "negative", "latent_image")},
        add_noise=True,
        noise_seed=1,
        cfg=3.0,
        sampler=one("KSamplerSelect", sampler_name=rig.sampler_name),
        sigmas=rig.sigmas(0.9, 0.5),
    )["samples"]
    assert same(drawn, rig.guided())


@node("SamplerCustomAdvanced", "RandomNoise")
def custom_advanced(rig, _):
    seeded = rig.draw(noise=one("RandomNoise", noise_seed=1))
    assert same(seeded, rig.base) and not same(rig.draw(noise=one("RandomNoise", noise_seed=2)), rig.base)
    if rig.family == "sprint":
        return
    with pytest.raises(ValueError, match="scm does not support flow matching"):
        rig.draw(sampler=drawing.call("SanaSCMSampler")[0])


@node("DisableNoise")
def disable_noise(rig):
    """The latent alone, times cos t or 1 - sigma: what a split run left is taken up exactly."""
    left = rig.picture()
    low = rig.sigmas(0.9)[1:]
    seen = rig.model.clone()
    inputs = []
    seen.set_model_unet_function_wrapper(
        lambda apply, given: (inputs.append(given["input"]), apply(given["input"], given["timestep"], **given["c"]))[1]
    )
    rig.draw(seen, sigmas=low, latent=left, noise=one("DisableNoise"))
    share = math.cos(0.9) if rig.family == "sprint" else 1 - low[0].item()
    assert same(inputs[0], as_model_has(rig, left["samples"]) * share)


def as_model_has(rig, samples):
    """A LATENT's samples inside a run: core normalises Wan's."""
    return rig.model.model.latent_format.process_in(samples)


@node("AddNoise")
def add_noise(rig):
    """x_t of a picture; divided by cos t or 1 - sigma, DisableNoise goes on from it as a run of its own."""
    latent, low = rig.picture(), rig.sigmas(0.7)[1:]
    noised = one("AddNoise", model=rig.model, noise=one("RandomNoise", noise_seed=1), sigmas=low, latent_image=latent)
    share = math.cos(0.7) if rig.family == "sprint" else 1 - 0.7
    picture = as_model_has(rig, latent["samples"])
    seeded = one("RandomNoise", noise_seed=1).generate_noise(latent)
    given = share * picture + (math.sin(0.7) if rig.family == "sprint" else 0.7) * seeded
    assert same(as_model_has(rig, noised["samples"]), given)
    divided = {"samples": rig.model.model.latent_format.process_out(given / share)}
    chained = rig.draw(sigmas=low, latent=divided, noise=one("DisableNoise"))
    assert same(chained, rig.draw(sigmas=low, latent=latent))


# Guiders


@node("BasicGuider")
def basic_guider(rig):
    guider = one("BasicGuider", model=rig.model, conditioning=rig.red)
    assert same(rig.draw(guider=guider), rig.draw(negative=rig.blue, cfg=1.0))


@node("CFGGuider", "DualModelGuider")
def cfg_guider(rig, name):
    second = {"model_negative": rig.model} if name == "DualModelGuider" else {}
    led = {"positive": rig.red, "negative": rig.blue, "cfg": 3.0}
    guider = one(name, model=rig.model, **led, **second)
    red, blue = rig.once(), rig.once(positive=rig.blue)
    assert same(rig.draw(guider=guider, sigmas=rig.sigmas()), blue + 3 * (red - blue))


@node("DualCFGGuider")
def dual_cfg_guider(rig):
    empty = rig.encode("")
    prompts = {"cond1": rig.red, "cond2": rig.blue, "negative": empty}
    guider = one("DualCFGGuider", model=rig.model, cfg_conds=3.0, cfg_cond2_negative=2.0, **prompts)
    red, blue, none = (rig.once(positive=prompt) for prompt in (rig.red, rig.blue, empty))
    assert same(rig.draw(guider=guider, sigmas=rig.sigmas()), none + 2 * (blue - none) + 3 * (red - blue))


@node("PerpNegGuider", "PerpNeg")
def perp_neg(rig, name):
    empty = rig.encode("")
    prompts = {"positive": rig.red, "negative": rig.blue}

    def drawn(neg_scale):
        if name == "PerpNegGuider":
            led = {"empty_conditioning": empty, "cfg": 3.0, "neg_scale": neg_scale}
            return rig.draw(guider=one(name, model=rig.model, **prompts, **led), sigmas=rig.sigmas())
        patched = one(name, model=rig.model, empty_conditioning=empty, neg_scale=neg_scale)
        return rig.guided_once(patched)

    red, none = rig.once(), rig.once(positive=empty)
    assert same(drawn(0.0), none + 3 * (red - none), 1e-3)
    assert not same(drawn(1.0), drawn(0.0), 1e-3)
