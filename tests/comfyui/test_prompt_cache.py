"""What the encoder keeps of a prompt, in ComfyUI: LoRAs and hooks on a CLIP, offloading, memory, and the disk."""

from __future__ import annotations

from pathlib import Path

import drawing
import in_process
import pytest
import torch

PROMPT = "a red ring on the left of a blue background"
KEY = "gemma.layers.1.mlp.down_proj.weight"


@pytest.fixture
def clip(home, reference, monkeypatch):
    from sana_nodes import host as hosts
    from sana_nodes.networks import prompt_cache

    monkeypatch.setattr(prompt_cache, "LONG", 0.0)
    in_process.start_comfyui(home)
    hosts.use("comfyui")
    for path in kept_files():
        path.unlink()
    yield drawing.call("SanaLoadPipeline", pipeline="tiny")[1]
    hosts._current = None


def kept_files() -> list[Path]:
    import folder_paths

    return list((Path(folder_paths.get_user_directory()) / "sana-nodes" / "prompts").glob("*"))


def states(clip, prompt: str = PROMPT) -> torch.Tensor:
    return drawing.call("SanaEncodePrompt", clip=clip, text=prompt)[0][0][0]


def plain_states(clip, monkeypatch, prompt: str = PROMPT) -> torch.Tensor:
    """Without anything that is kept."""
    from sana_nodes.networks import prompt_cache
    from sana_nodes.networks.text_encoder import encode_tokens

    def plain(self, module, prompts, device, *_, **__):
        return [encode_tokens(module, tokens, device) for tokens in prompts]

    with monkeypatch.context() as patch:
        patch.setattr(prompt_cache.PromptCache, "encode_all", plain)
        return states(clip, prompt)


def patched(clip):
    made = clip.clone()
    weight = clip.cond_stage_model.get_parameter(KEY)
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    assert made.add_patches({KEY: (change,)}, 1.0) == [KEY]
    return made


def test_a_patched_clip_and_the_plain_one_take_turns(clip, monkeypatch):
    other = patched(clip)
    expected = [plain_states(one, monkeypatch) for one in (clip, other)]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    for _ in range(2):
        for one, right in zip((clip, other), expected):
            assert (states(one) - right).abs().max() < 1e-5
            again = plain_states(one, monkeypatch, "a green square")
            assert (states(one, "a green square") - again).abs().max() < 1e-5
    assert len(kept_files()) == 1, "the plain encoder's instruction alone is on disk"


def test_the_next_start_finds_the_instruction(clip):
    first = states(clip)
    (file,) = kept_files()
    fresh, seen = drawing.call("SanaLoadPipeline", pipeline="tiny")[1], []
    gemma = fresh.cond_stage_model.gemma
    gemma.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape[1]), with_kwargs=True)
    assert (states(fresh) - first).abs().max() < 1e-6 and kept_files() == [file]
    assert len(seen) == 1 and seen[0] < first.shape[1] + 9, "the prompt's own tokens alone were computed"


def test_a_weight_that_a_hook_changes_is_seen(clip, monkeypatch):
    """Hooks of a prompt change weights in place and leave the patcher's name for them."""
    before = states(clip)
    weight = clip.cond_stage_model.get_parameter(KEY)
    kept = weight.data.clone()
    weight.data += 0.3
    changed = states(clip)
    assert (changed - plain_states(clip, monkeypatch)).abs().max() < 1e-5
    weight.data.copy_(kept)
    assert (changed - before).abs().max() > 1e-3 and (states(clip) - before).abs().max() < 1e-6


def test_a_video_prompt_and_the_negative_one_are_asked_of_the_encoder_at_once(clip, monkeypatch):
    """One load of the model, whose memory is that of both; the second finds its states kept."""
    model, seen, estimates = clip.cond_stage_model, [], []
    encode, estimate = model.cache.encode_all, model.memory_estimation_function
    monkeypatch.setattr(model.cache, "encode_all", lambda m, p, *a, **k: seen.append(len(p)) or encode(m, p, *a, **k))
    monkeypatch.setattr(
        model, "memory_estimation_function", lambda t, device=None: estimates.append(estimate(t, device)) or 0
    )
    computed = []
    model.gemma.register_forward_pre_hook(lambda m, a, k: computed.append(k["input_ids"].shape), with_kwargs=True)
    positive, negative = drawing.call("SanaEncodeVideoPrompt", clip=clip, prompt=PROMPT)
    assert seen == [2, 1] and len(computed) == 3, "the instruction, the prompt behind it, and the negative one"
    for conditioning in (positive, negative):
        assert torch.isfinite(conditioning[0][0]).all() and conditioning[0][1]["sana_encoder"]
    assert not estimates or estimates[0] > estimates[-1]


def test_what_is_kept_counts_as_memory(clip):
    states(clip)
    model, tokens = clip.cond_stage_model, clip.tokenize("a")
    held = model.cache.nbytes
    assert held > 0
    with_it = model.memory_estimation_function(tokens)
    model.cache.clear()
    assert with_it - model.memory_estimation_function(tokens) == held


def test_clip_text_encode_gives_the_same(clip):
    import nodes

    (conditioning,) = nodes.CLIPTextEncode().encode(clip, PROMPT)
    assert (conditioning[0][0] - states(clip)).abs().max() < 1e-6
