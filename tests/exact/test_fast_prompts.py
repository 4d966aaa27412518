"""The instruction's kept keys and values, against the plain path: states of every prompt are the same."""

from __future__ import annotations

import random
from functools import partial

import pytest
import tiny
import torch
from sana_nodes.networks import prompt_cache
from sana_nodes.networks.prompt_cache import PromptCache, weights_probe
from sana_nodes.networks.prompts import PromptTokens
from sana_nodes.networks.text_encoder import encode_tokens
from transformers import DynamicCache

CPU = torch.device("cpu")
new = partial(PromptCache, DynamicCache)
PREFIX = tuple(3 + n * 7 % 700 for n in range(90))
"""Longer than the tiny encoder's window of 64, so that keys leave it."""


@pytest.fixture
def calls():
    """An encoder that notes how many tokens it computed in each call."""
    module = tiny.text_encoder()
    seen = []
    module.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape[1]), with_kwargs=True)
    module.seen = seen
    return module


def difference(cache: PromptCache, module, tokens: PromptTokens) -> float:
    mine, plain = cache.encode(module, tokens, CPU), encode_tokens(module, tokens, CPU)
    assert mine.shape == plain.shape
    return (mine - plain).abs().max().item()


@pytest.mark.parametrize("window", [64, 4096])
def test_states_are_those_of_the_plain_path(window):
    """Prompts of 1 to 80 tokens, of which an instruction's last one is kept too."""
    module, cache, choose = tiny.text_encoder(sliding_window=window), new(), random.Random(0)
    for length in (1, 2, 30, 80):
        own = tuple(choose.randrange(3, 800) for _ in range(length))
        assert difference(cache, module, PromptTokens(PREFIX + own, len(PREFIX) - 1)) < 1e-5


def test_an_instruction_is_computed_once(calls):
    cache = new()
    for own in ((5, 6), (7, 8, 9)):
        cache.encode(calls, PromptTokens(PREFIX + own, len(PREFIX)), CPU)
    assert calls.seen == [90, 2, 3]
    assert cache.nbytes == 3 * 2 * 2 * 16 * 90 * 4


def test_a_repeated_prompt_is_free_and_unchanged(calls):
    cache, tokens = new(), PromptTokens((*PREFIX, 5, 6), len(PREFIX))
    first = cache.encode(calls, tokens, CPU)
    cache.encode(calls, tokens, CPU).zero_()
    count = len(calls.seen)
    assert torch.equal(cache.encode(calls, tokens, CPU), first) and len(calls.seen) == count


def test_tokens_that_merge_at_the_boundary(calls):
    """A prompt whose text changes the instruction's last tokens uses those before."""
    cache = new()
    cache.encode(calls, PromptTokens((*PREFIX, 5, 6), len(PREFIX)), CPU)
    calls.seen.clear()
    merged = PromptTokens((*PREFIX[:-2], 777, 5, 6), len(PREFIX) - 1)
    assert difference(cache, calls, merged) < 1e-5
    assert calls.seen[0] == 3, "the merged token and the prompt's two"


@pytest.mark.parametrize(
    ("ids", "first_kept"),
    [
        (PREFIX, len(PREFIX)),
        (PREFIX[:40], len(PREFIX)),
        ((*PREFIX, 4), 0),
        ((*PREFIX, 4), 1),
        ((2,), 1),
        ((2, 9), 0),
    ],
    ids=["no prompt", "cut inside", "all kept", "all but one kept", "one token", "two tokens"],
)
def test_borders(ids, first_kept):
    cache, module = new(), tiny.text_encoder()
    cache.encode(module, PromptTokens((*PREFIX, 5), len(PREFIX)), CPU)
    assert difference(cache, module, PromptTokens(ids, first_kept)) < 1e-5


def test_another_instruction_and_back(calls):
    """Two are kept, and a third takes the place of the one that was used longest ago."""
    cache = new()
    others = [tuple((id_ + shift) % 700 + 3 for id_ in PREFIX) for shift in (1, 2, 3)]
    for number, one in enumerate((*others[:2], others[0], others[2], others[0], others[1])):
        assert difference(cache, calls, PromptTokens((*one, 11 + number), len(one))) < 1e-5
    computed = [count for count in calls.seen if count == len(PREFIX)]
    assert len(computed) == 4, "the second was forgotten and computed again"


def test_other_weights_empty_it(calls):
    cache, tokens = new(), PromptTokens((*PREFIX, 5), len(PREFIX))
    cache.encode(calls, tokens, CPU, weights_probe(calls))
    with torch.no_grad():
        calls.layers[1].self_attn.k_proj.weight += 0.1
    mine = cache.encode(calls, tokens, CPU, weights_probe(calls))
    assert (mine - encode_tokens(calls, tokens, CPU)).abs().max() < 1e-5


def test_few_prompts_are_kept(calls, monkeypatch):
    monkeypatch.setattr(prompt_cache, "PROMPTS", 2)
    cache = new()
    for own in (5, 6, 7, 5):
        cache.encode(calls, PromptTokens((*PREFIX, own), len(PREFIX)), CPU)
    assert calls.seen == [90, 1, 1, 1, 1]


def test_bfloat16_is_no_farther_from_float32_than_the_plain_path():
    """Root mean square over eight encoders; 1.1 leaves room for the chance of where rounding falls."""
    errors = {"mine": 0.0, "plain": 0.0}
    for seed in range(8):
        module = tiny.text_encoder(seed)
        half = tiny.text_encoder(seed).to(torch.bfloat16)
        module.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        cache = new()
        for own in range(4):
            tokens = PromptTokens((*PREFIX, *(own * 31 + n for n in range(3, 23))), len(PREFIX) - 1)
            exact = encode_tokens(module, tokens, CPU)
            errors["mine"] += (cache.encode(half, tokens, CPU).float() - exact).square().mean().item()
            errors["plain"] += (encode_tokens(half, tokens, CPU).float() - exact).square().mean().item()
    assert 0 < errors["mine"] ** 0.5 < 1.1 * errors["plain"] ** 0.5
