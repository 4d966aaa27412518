"""The instruction's kept keys and values, against the plain path: states of every prompt are the same."""

from __future__ import annotations

import os
import random
from functools import partial

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from sana_nodes.model_loaders.files import kept
from sana_nodes.model_loaders.files.kept import KeptTensors
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


def several(choose: random.Random) -> list[PromptTokens]:
    """Of two instructions and of none, of many lengths, one asked twice and one without a token of its own."""
    other, none = tuple((id_ + 5) % 700 + 3 for id_ in PREFIX), (2,)
    lengths = [(PREFIX, 9), (other, 4), (none, 12), (PREFIX, 1), (PREFIX, 80), (none, 1), (other, 30), (PREFIX, 0)]
    asked = [
        PromptTokens((*before, *(choose.randrange(3, 800) for _ in range(length))), len(before) - 1)
        for before, length in lengths
    ]
    return [*asked, asked[0]]


def test_several_prompts_are_one_call_for_each_instruction(calls):
    """Shorter prompts are filled up behind; each has the states that it has alone."""
    asked = several(random.Random(1))
    together = new().encode_all(calls, asked, CPU)
    assert calls.seen == [1 + 12, 89, 1 + 80, 89, 1 + 30]
    for states, tokens in zip(together, asked):
        alone = encode_tokens(calls, tokens, CPU)
        assert states.shape == alone.shape and (states - alone).abs().max() < 1e-5
    together[0].zero_()
    assert together[-1].any(), "a prompt that was asked twice is two tensors"


def test_prompts_that_were_encoded_together_are_free_afterwards(calls, monkeypatch):
    monkeypatch.setattr(prompt_cache, "PROMPTS", 2)
    cache, asked = new(), several(random.Random(2))
    together = cache.encode_all(calls, asked, CPU)
    calls.seen.clear()
    for states, again in zip(together, cache.encode_all(calls, asked, CPU)):
        assert torch.equal(states, again)
    assert calls.seen == []


def test_a_call_takes_so_many_prompts(calls, monkeypatch):
    monkeypatch.setattr(prompt_cache, "TOGETHER", 3)
    asked = [PromptTokens((*PREFIX, *range(3, 4 + n)), len(PREFIX)) for n in range(7)]
    new().encode_all(calls, asked, CPU)
    assert calls.seen == [90, 3, 6, 7], "sorted by length: 1 to 3, 4 to 6, and the longest"


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


@pytest.fixture
def disk(tmp_path, monkeypatch) -> KeptTensors:
    monkeypatch.setattr(prompt_cache, "LONG", 0.0)
    return KeptTensors(tmp_path / "user" / "prompts")


TOKENS = PromptTokens((*PREFIX, 5, 6), len(PREFIX) - 1)


def started(disk, encoder=None) -> tuple[PromptCache, torch.nn.Module, list[int]]:
    """What a program that starts has: an encoder whose cache is empty, and what it computes from now on."""
    module = encoder or tiny.text_encoder()
    seen = []
    module.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape[1]), with_kwargs=True)
    return new(disk), module, seen


def test_the_first_prompt_after_a_start_finds_the_instruction_on_disk(disk):
    cache, module, seen = started(disk)
    first = cache.encode(module, TOKENS, CPU)
    assert seen == [89, 3] and len(list(disk.folder.iterdir())) == 1
    cache, module, seen = started(disk)
    again = cache.encode(module, TOKENS, CPU)
    assert seen == [3] and (again - first).abs().max() < 1e-6
    other = PromptTokens((*PREFIX, 9, 8, 7), len(PREFIX) - 1)
    assert difference(cache, module, other) < 1e-5 and len(list(disk.folder.iterdir())) == 1


def _other_matrix(module):
    module.layers[2].mlp.down_proj.weight += 1e-3


def _other_norm(module):
    module.norm.weight += 1e-3


def _other_dtype(module):
    module.to(torch.bfloat16)


@pytest.mark.parametrize("change", [_other_matrix, _other_norm, _other_dtype])
def test_other_weights_do_not_find_it(disk, change):
    cache, module, _ = started(disk)
    cache.encode(module, TOKENS, CPU)
    cache, module, seen = started(disk)
    with torch.no_grad():
        change(module)
    cache.encode(module, TOKENS, CPU)
    assert seen == [89, 3] and len(list(disk.folder.iterdir())) == 2


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def _empty(path):
    path.write_bytes(b"")


def _fewer_layers(path):
    kept = load_file(path)
    save_file({name: value for name, value in kept.items() if not name.endswith(".2")}, path)


def _fewer_tokens(path):
    save_file({name: value[..., :50, :].contiguous() for name, value in load_file(path).items()}, path)


def _flat(path):
    save_file({name: value.flatten() for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize("damage", [_cut, _empty, _fewer_layers, _fewer_tokens, _flat])
def test_a_damaged_file_is_computed_again(disk, damage):
    cache, module, _ = started(disk)
    first = cache.encode(module, TOKENS, CPU)
    (path,) = disk.folder.iterdir()
    damage(path)
    for computed in ([89, 3], [3]):
        cache, module, seen = started(disk)
        assert (cache.encode(module, TOKENS, CPU) - first).abs().max() < 1e-6
        assert seen == computed, "and the next start finds a whole file"


def test_patched_weights_leave_the_disk_alone(disk):
    """A LoRA that is applied while a layer runs is not in the tensors: they have the hash of the plain weights."""
    cache, module, _ = started(disk)
    cache.encode(module, TOKENS, CPU, patched=True)
    assert not disk.folder.exists()
    started(disk)[0].encode(module, TOKENS, CPU)
    cache, module, seen = started(disk)
    cache.encode(module, TOKENS, CPU, patched=True)
    assert seen == [89, 3]


def test_what_is_quick_is_not_kept(disk, monkeypatch):
    monkeypatch.setattr(prompt_cache, "LONG", 60.0)
    cache, module, _ = started(disk)
    cache.encode(module, TOKENS, CPU)
    assert not disk.folder.exists()


def test_a_folder_that_takes_nothing_is_a_line_in_the_log(disk, caplog):
    disk.folder.parent.mkdir()
    disk.folder.write_text("a file")
    cache, module, seen = started(disk)
    cache.encode(module, TOKENS, CPU)
    assert seen == [89, 3] and "keeps nothing for the next start" in caplog.text


def test_few_files_stay(disk):
    for number in range(kept.MOST + 2):
        disk.save(f"{number}", {"first": torch.zeros(number + 1)})
        os.utime(disk.folder / f"{number}.safetensors", (number, number))
        if number > 1:
            assert disk.load("0") is not None, "what is used stays"
    assert {path.name for path in disk.folder.iterdir()} == {f"{n}.safetensors" for n in (0, 3, 4, 5)}
