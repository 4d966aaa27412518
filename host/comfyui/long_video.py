"""A LongSANA MODEL in ComfyUI: one block in a call, one prompt for each block, and what does not go with that."""

from __future__ import annotations

import comfy.patcher_extension

from ...networks.families import TransformerSpec
from ...networks.long_video import cells_of, check_run, prepare_state
from ...samplers import goes_by_blocks
from ...samplers.block_causal import BLOCK, BlockCall, call_in, longest_block, prompt_of, start_of
from . import guidance

WRAPPERS = comfy.patcher_extension.WrappersMP
CORE_SAMPLER = "sample_ar_video"
"""ComfyUI 0.33's sampler for models that go block by block (SamplerARVideo)."""

BLOCK_SIZES = {"block_frames": BLOCK, "num_frame_per_block": BLOCK}
"""The options of samplers by which they name a block's length."""

OF_PROMPTS = {
    "control": "a ControlNet",
    "area": "areas of prompts (ConditioningSetArea)",
    "mask": "masks of prompts (ConditioningSetMask)",
    "gligen": "GLIGEN",
}
FRAMES = "sana_block_frames"
CACHED = "sana_cached_blocks"
"""How many blocks a state keeps one by one: in a conditioning, from which ComfyUI estimates memory."""


def watch(patcher, spec: TransformerSpec):
    """The patcher with what a long video needs of every run of a sampler, from any node. Returns it."""

    def before(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        guider, function = executor.class_obj, getattr(sampler, "sampler_function", None)
        others = _others(guider, function, denoise_mask) if spec.family.block_causal else []
        check_run(spec, _goes_by_blocks(function), getattr(guider, "cfg", 1.0), others)
        if spec.family.block_causal:
            options = getattr(sampler, "extra_options", {})
            sizes = [options[name] for name in BLOCK_SIZES if name in options]
            run = {FRAMES: (sizes or [BLOCK])[0], CACHED: options.get("cached_blocks", 0)}
            guider.model_options.setdefault("transformer_options", {}).update(run)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    patcher.add_wrapper(WRAPPERS.OUTER_SAMPLE, before)
    if spec.family.block_causal:
        patcher.add_wrapper(WRAPPERS.PREPARE_SAMPLING, _prepare)
        patcher.add_wrapper(WRAPPERS.CALC_COND_BATCH, _with_prompt_of_block)
    return patcher


def _goes_by_blocks(function) -> bool:
    return goes_by_blocks(function) or getattr(function, "__name__", "") == CORE_SAMPLER


def _others(guider, function, denoise_mask) -> list[str]:
    """What is asked of a run that a long video does not support."""
    options, prompts = guider.model_options, [prompt for given in guider.conds.values() for prompt in given or ()]
    found = [what for name, what in OF_PROMPTS.items() if any(prompt.get(name) is not None for prompt in prompts)]
    if len(guider.conds.get("positive") or ()) > 1 and getattr(function, "__name__", "") == CORE_SAMPLER:
        found.append("several prompts in SamplerARVideo (Sana Long Video Sampler takes them)")
    if options.get("transformer_options", {}).get("easycache") is not None:
        found.append("EasyCache or LazyCache, which leave out calls")
    if options.get("transformer_options", {}).get(guidance.KEY) is not None:
        found.append("Sana PAG")
    if options.get("context_handler") is not None:
        found.append("context windows, which it has no need of")
    if denoise_mask is not None and bool((denoise_mask < 1).any()):
        found.append("a noise mask (image to video)")
    return found


def _prepare(executor, model, noise_shape, conds, *args, **kwargs):
    """Memory is made ready for one block and the state, and not for the whole video."""
    options = (kwargs.get("model_options") or next(iter(args), None) or {}).get("transformer_options", {})
    longest = longest_block(noise_shape[2], options.get(FRAMES, BLOCK))
    cached = {CACHED: options.get(CACHED, 0)}
    conds = {name: [{**entry, **cached} for entry in entries or ()] for name, entries in conds.items()}
    return executor(model, (*noise_shape[:2], longest, *noise_shape[3:]), conds, *args, **kwargs)


def block_of(transformer_options: dict, timesteps) -> BlockCall | None:
    """The BlockCall of our sampler, or of ComfyUI 0.33's, of which a call at time 0 writes."""
    core = transformer_options.get("ar_state")
    if core is None:
        return call_in(transformer_options)
    state = core["kv_caches"][0]["state"]
    state.start = core["start_frame"]
    return BlockCall(state, writes=not bool(timesteps.any()))


def _with_prompt_of_block(executor, model, conds, x_in, timestep, model_options):
    """Of several prompts (Sana Prompt Schedule) the one of the block is computed.

    The state is made here and not by the network, of which TorchCompileModel would compile that too.
    """
    call = call_in(model_options.get("transformer_options"))
    if call is not None:
        network, ratio = model.diffusion_model, model.sana_spec.frame_ratio
        tokens = x_in.new_empty(len(x_in), 0, 0, dtype=model.manual_cast_dtype or model.get_dtype())
        prepare_state(call.state, network.config, tokens, cells_of(network.config, x_in.shape))
        conds = [_prompt(entries, call, ratio) for entries in conds]
    return executor(model, conds, x_in, timestep, model_options)


def _prompt(entries, call, ratio: int):
    if entries is None or len(entries) < 2:
        return entries
    return [entries[prompt_of([start_of(entry, ratio) for entry in entries], call)]]
