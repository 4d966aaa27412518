"""A long video block by block, against one dense pass under a block mask (long_oracle.py)."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from long_oracle import Oracle
from sana_nodes.networks import fast_layers, long_video
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.samplers.block_causal import BlockCall, BlockState, block_lengths, sample_blocks

LIMIT = {torch.float64: 1e-11, torch.float32: 1e-4}
DTYPES = [torch.float64, torch.float32]
LENGTHS = [3, 2, 2]


@pytest.fixture(scope="module")
def plain():
    """diffusers' module of three layers, whose weights are large enough that every part counts."""
    network = tiny.video_transformer(num_layers=3, caption_channels=16)
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        scale = 0.12 if parameter.ndim > 1 else 0.5
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return network


def ours(plain, dtype):
    return use_fast_transformer(copy.deepcopy(plain).to(dtype))


def video(dtype, frames=7, batch=1, seed=0):
    return torch.randn(batch, 16, frames, 4, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prompt(dtype, seed=1, words=5):
    return torch.randn(1, words, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call(network, x, context, time, state, writes=False):
    with torch.no_grad():
        times = torch.full((len(x),), float(time), dtype=x.dtype)
        words = context.expand(len(x), -1, -1)
        return network(x, words, times, return_dict=False, block=BlockCall(state, writes))[0]


def written(network, x, context, lengths=LENGTHS, start=0, window=0) -> tuple[list, BlockState]:
    """The outputs of clean blocks one after another, and the state after them."""
    state = BlockState(cached_blocks=window)
    state.start = start
    return [call(network, part, context, 0, state, True) for part in x.split(lengths, 2)], state


def difference(one, other) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_block_is_the_plain_transformer(plain, dtype):
    x, context, network = video(torch.float32), prompt(torch.float32), ours(plain, dtype)
    with torch.no_grad():
        expected = plain(x, context, torch.tensor([727.0]), return_dict=False)[0]
    assert difference(call(network, x.to(dtype), context.to(dtype), 727, BlockState()), expected) < 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_clean_blocks_are_one_masked_pass(plain, dtype):
    x, context = video(dtype), prompt(dtype)
    outputs, state = written(ours(plain, dtype), x, context)
    expected = Oracle(plain, LENGTHS, dtype)(x, [context] * 3, [0, 0, 0])
    assert difference(torch.cat(outputs, 2), expected) < LIMIT[dtype]
    assert (state.start, state.blocks) == (7, 3)


def noisy_last(plain, dtype, batch=1, window=0):
    """The output for a third block at time 889 after two clean ones, and the oracle's."""
    x, context, network = video(dtype, batch=batch), prompt(dtype), ours(plain, dtype)
    _, state = written(network, x[:, :, :5], context, LENGTHS[:2], window=window)
    mine = call(network, x[:, :, 5:], context, 889, state)
    expected = Oracle(plain, LENGTHS, dtype)(x, [context] * 3, [0, 0, 889])[:, :, 5:]
    return mine, expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_noisy_block_is_one_masked_pass_with_times_of_tokens(plain, dtype):
    assert difference(*noisy_last(plain, dtype, batch=2)) < LIMIT[dtype]


def test_a_call_that_does_not_write_leaves_the_state(plain):
    network, x, context = ours(plain, torch.float32), video(torch.float32), prompt(torch.float32)
    _, state = written(network, x[:, :, :5], context, LENGTHS[:2])
    before = state.moved("cpu", copy=True)
    call(network, x[:, :, 5:], context, 889, state)
    assert state.kept.keys() == before.kept.keys() == {"sums", "total", "left"}
    assert all(torch.equal(tensor, before.kept[name]) for name, tensor in state.kept.items())
    assert (state.start, state.blocks) == (before.start, before.blocks)


def test_positions_count_from_the_first_block_and_may_all_be_moved(plain):
    """Also beyond the 1024 latent frames of diffusers' table."""
    network, x, context = ours(plain, torch.float64), video(torch.float64), prompt(torch.float64)
    outputs, _ = written(network, x, context)
    for start in (40, 5000):
        assert difference(torch.cat(written(network, x, context, start=start)[0], 2), torch.cat(outputs, 2)) < 1e-10
    state = BlockState()
    for number, part in enumerate(x.split(LENGTHS, 2)):
        state.start = 0
        restarted = call(network, part, context, 0, state, True)
        assert (difference(restarted, outputs[number]) < 1e-10) == (number == 0)


def test_rotations_are_diffusers_and_go_on_beyond_their_table(plain):
    network = ours(plain, torch.float32)
    like, size = torch.zeros(1, 16, 3, 4, 6), [3, 2, 3]
    theirs = torch.complex(*(part[0, :, 0, ::2] for part in plain.rope(like)))
    assert (network.rope.rotary_at(0, size, like).turns - theirs).abs().max() < 1e-6
    first = network.rope.rotary_at(1020, [8, 2, 3], like).turns
    assert torch.equal(first[5 * 6 :], network.rope.rotary_at(1025, size, like).turns)
    assert first.abs().sub(1).abs().max() < 1e-6 and torch.view_as_real(first).flatten(1).unique(dim=0).shape[0] == 48


# A sampler's run


def denoiser(network, contexts, dtype, calls=None):
    """What a host gives a sampler: x0 of x_t; ``contexts``: of the block's number."""

    def denoise(x, sigma, model_options=None, **_):
        block = model_options["transformer_options"]["sana_block"]
        context = contexts[min(block.number, len(contexts) - 1)]
        if calls is not None:
            calls.append((round(float(sigma[0]) * 1000), x.shape[2], block.writes, block.state.start))
        words = context.expand(len(x), -1, -1).to(dtype)
        out = network(x.to(dtype), words, sigma.to(dtype) * 1000, return_dict=False, block=block)[0]
        return x - sigma.view(-1, 1, 1, 1, 1) * out

    return denoise


SIGMAS = torch.tensor([1.0, 0.96, 0.889, 0.727, 0.0])


def sampled(network, frames, contexts, dtype=torch.float64, seed=3, batch=1, calls=None, **options):
    x = torch.zeros(batch, 16, frames, 4, 6, dtype=dtype)
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    return sample_blocks(denoiser(network, contexts, dtype, calls), x, SIGMAS, block_frames=2, **options)


def test_a_run_calls_four_times_and_writes_once_between_blocks(plain):
    calls = []
    sampled(ours(plain, torch.float64), 7, [prompt(torch.float64)], calls=calls)
    steps = [1000, 960, 889, 727]
    assert calls == [
        *((time, 3, False, 0) for time in steps),
        (0, 3, True, 0),
        *((time, 2, False, 3) for time in steps),
        (0, 2, True, 3),
        *((time, 2, False, 5) for time in steps),
    ]


def oracle_sampled(plain, frames, contexts_of, dtype=torch.float64, seed=3):
    """The same video by dense passes over everything so far; ``contexts_of(n)``: each block's prompt for block n."""
    noise, lengths = torch.Generator().manual_seed(seed), block_lengths(frames, 2)
    clean = torch.zeros(1, 16, 0, 4, 6, dtype=dtype)
    for number, length in enumerate(lengths):
        x = torch.randn(1, 16, length, 4, 6, generator=noise)
        for sigma, following in zip(SIGMAS, SIGMAS[1:]):
            whole, times = torch.cat([clean, x.to(dtype)], 2), [0] * number + [float(sigma * 1000)]
            out = Oracle(plain, lengths, dtype)(whole, contexts_of(number), times)[:, :, -length:]
            x = x - sigma * out
            if following > 0:
                x = (1 - following) * x + following * torch.randn(x.shape, generator=noise)
        clean = torch.cat([clean, x], 2)
    return clean


@pytest.fixture(scope="module")
def story(plain):
    """A prompt for each block, and the oracle's video: a block before a new prompt is seen as if it had that one."""
    contexts = [prompt(torch.float64, seed) for seed in (1, 2, 3)]
    return contexts, oracle_sampled(plain, 7, lambda number: [contexts[min(n + 1, number)] for n in range(number + 1)])


def test_a_story_is_the_dense_oracles(plain, story):
    contexts, expected = story
    assert difference(sampled(ours(plain, torch.float64), 7, contexts), expected) < 1e-9
    assert difference(sampled(ours(plain, torch.float32), 7, contexts, torch.float32), expected) < 1e-4


def test_a_story_without_recaching_is_the_dense_oracles(plain, story):
    contexts, recached = story
    mine = sampled(ours(plain, torch.float64), 5, contexts, recache=False)
    assert difference(mine, oracle_sampled(plain, 5, lambda number: contexts[: number + 1])) < 1e-9
    assert difference(mine, recached[:, :, :5]) > 1e-3


def test_a_longer_video_begins_with_the_shorter_ones_frames(plain):
    network, context = ours(plain, torch.float32), [prompt(torch.float32)]
    short, long = (sampled(network, frames, context, torch.float32) for frames in (5, 9))
    assert torch.equal(long[:, :, :5], short)


@pytest.mark.parametrize("window", [0, 1, 2])
def test_going_on_is_an_unbroken_run(plain, window):
    """Also with another prompt, and from a state that was copied in between; the state given stays as it was."""
    network = ours(plain, torch.float32)
    contexts = [prompt(torch.float32, seed) for seed in (1, 1, 2, 2)]
    options = {"dtype": torch.float32, "cached_blocks": window}
    whole = sampled(network, 9, contexts, **options)
    state = BlockState(cached_blocks=window)
    first = sampled(network, 5, contexts[:2], state=state, **options)
    state.seed, taken = 3, state.moved("cpu", copy=True)
    then = sampled(network, 4, contexts[2:], state=taken, generator=state.generator(3), **options)
    assert difference(torch.cat([first, then], 2), whole) < 1e-6
    again = state.moved("cpu", copy=True)
    assert torch.equal(sampled(network, 4, contexts[2:], state=again, generator=state.generator(3), **options), then)
    assert (state.frames, taken.frames) == (5, 9)


def test_going_on_without_recaching_writes_with_the_old_prompt(plain):
    network = ours(plain, torch.float32)
    contexts = [prompt(torch.float32, seed) for seed in (1, 1, 2, 2)]
    whole = sampled(network, 9, contexts, torch.float32, recache=False)
    state = BlockState()
    sampled(network, 5, contexts[:2], torch.float32, recache=False, state=state)
    state.seed = 3
    then = sampled(network, 4, contexts[2:], torch.float32, recache=False, state=state, generator=state.generator(3))
    assert difference(then, whole[:, :, 5:]) < 1e-6


def test_a_window_sees_the_last_blocks_alone(plain):
    """All blocks in a window that is long enough; fewer give another answer, and a ring is not summed up twice."""
    network, x, context = ours(plain, torch.float64), video(torch.float64, 11), prompt(torch.float64)
    lengths = [3, 2, 2, 2, 2]

    def last(window):
        _, state = written(network, x[:, :, :9], context, lengths[:4], window=window)
        return call(network, x[:, :, 9:], context, 889, state), state

    everything, _ = last(0)
    assert difference(last(4)[0], everything) < 1e-11 and difference(last(9)[0], everything) < 1e-11
    windowed, state = last(2)
    assert difference(windowed, everything) > 1e-4
    for name in ("sums", "total"):
        assert torch.allclose(state.kept[f"{name}_by_block"].sum(0), state.kept[name])
    in_full = written(network, x[:, :, :9], context, lengths[:4], window=0)[1].kept["sums"][0]
    layer0 = written(network, x[:, :, :5], context, lengths[:2], window=0)[1].kept["sums"][0]
    assert difference(state.kept["sums"][0] + layer0, in_full) < 1e-11  # layer 0 does not depend on the blocks


def test_a_batch_is_two_singles(plain):
    """In the network; the noise of a batch is drawn together."""
    network, x, context = ours(plain, torch.float32), video(torch.float32, batch=2), prompt(torch.float32)
    both, _ = written(network, x, context)
    for number in range(2):
        alone, _ = written(network, x[number : number + 1], context)
        assert difference(torch.cat(both, 2)[number : number + 1], torch.cat(alone, 2)) < 1e-6


def test_a_states_bytes_do_not_grow_and_are_the_formulas(plain):
    network, context = ours(plain, torch.float32), prompt(torch.float32)
    x, sizes = video(torch.float32, 20, batch=2), []
    state = BlockState()
    for part in x.split(2, 2):
        call(network, part, context, 0, state, True)
        sizes.append(state.bytes)
    assert set(sizes) == {long_video.state_bytes(network.config, 2, 6, 4)}
    windowed = written(network, x[:, :, :4], context, [2, 2], window=3)[1]
    assert windowed.bytes == long_video.state_bytes(network.config, 2, 6, 4, cached_blocks=3)


def test_a_run_that_stops_inside_a_block_leaves_nothing_behind(plain):
    network, context = ours(plain, torch.float32), [prompt(torch.float32)]
    expected = sampled(network, 7, context, torch.float32)
    for stop in (1, 5, 6):
        steps = iter(range(stop))
        with pytest.raises(StopIteration):
            sampled(network, 7, context, torch.float32, callback=lambda state, steps=steps: next(steps))
        assert torch.equal(sampled(network, 7, context, torch.float32), expected)
    names = {name for name, _ in network.named_buffers()} | set(vars(network))
    assert not any("state" in name or "past" in name for name in names if not name.startswith("_"))


def test_two_runs_at_the_same_time_do_not_share_a_state(plain):
    network, x = ours(plain, torch.float32), video(torch.float32)
    prompts = [prompt(torch.float32, seed) for seed in (1, 2)]
    alone = [torch.cat(written(network, x, context)[0], 2) for context in prompts]
    states, mixed = [BlockState(), BlockState()], [[], []]
    for part in x.split(LENGTHS, 2):
        for number in range(2):
            mixed[number].append(call(network, part, prompts[number], 0, states[number], True))
    assert all(torch.equal(torch.cat(parts, 2), expected) for parts, expected in zip(mixed, alone))


def test_the_mask_of_a_padded_prompt_hides_it(plain):
    network, x, context = ours(plain, torch.float32), video(torch.float32), prompt(torch.float32)
    expected = call(network, x, context, 700, BlockState())
    padded = torch.nn.functional.pad(context, (0, 0, 0, 3), value=7.0)
    with torch.no_grad():
        words = (torch.arange(8) < 5).float()[None]
        given = {"encoder_attention_mask": words, "block": BlockCall(BlockState()), "return_dict": False}
        assert difference(network(x, padded, torch.tensor([700.0]), **given)[0], expected) < 1e-5


# Broken on purpose: each of these must be seen by the tests above


def broken(monkeypatch, name):
    past = long_video.LayerPast
    if name == "positions restart":
        rotary = fast_positions()
        monkeypatch.setattr(rotary, "_turns", lambda self, start, *given, made=rotary._turns: made(self, 0, *given))
    elif name == "a noisy call writes":
        layers = long_video.layers_of
        monkeypatch.setattr(long_video, "layers_of", lambda state, writes: layers(state, True))
    elif name == "the right neighbour is seen":
        monkeypatch.setattr(
            past, "convolved", lambda self, conv, y: conv(torch.cat([y, self.left[:, :, None]], 2))[:, :, :-1]
        )
    elif name == "no left neighbour":
        monkeypatch.setattr(past, "convolved", lambda self, conv, y: conv(y))
    elif name == "rotated below the line":
        sums = fast_layers._key_sums

        def rotated(key, value, heads, weight, eps, turns):
            made, _ = sums(key, value, heads, weight, eps, turns)
            k = fast_layers._positive(key, weight, eps)
            return made, fast_layers.rotated(k, turns, heads).sum(0)

        monkeypatch.setattr(fast_layers, "_key_sums", rotated)


def fast_positions():
    from sana_nodes.networks.fast_video_transformer import FastPositions

    return FastPositions


@pytest.mark.parametrize(
    "name",
    [
        "positions restart",
        "a noisy call writes",
        "the right neighbour is seen",
        "no left neighbour",
        "rotated below the line",
    ],
)
def test_what_is_broken_on_purpose_is_seen_by_the_oracle(plain, story, monkeypatch, name):
    broken(monkeypatch, name)
    assert difference(sampled(ours(plain, torch.float64), 7, story[0]), story[1]) > 1e-4


def test_block_0_recached_on_its_own_state_is_seen(plain):
    """As NVlabs' code does: a block that is written once more on top of itself counts twice."""
    network, x = ours(plain, torch.float64), video(torch.float64, 5)
    old, new = prompt(torch.float64, 1), prompt(torch.float64, 2)
    _, right = written(network, x[:, :, :3], new, [3])
    _, twice = written(network, x[:, :, :3], old, [3])
    twice.start = 0
    call(network, x[:, :, :3], new, 0, twice, True)
    good, bad = (call(network, x[:, :, 3:], new, 889, state) for state in (right, twice))
    expected = Oracle(plain, [3, 2])(x, [new, new], [0, 889])[:, :, 3:]
    assert difference(good, expected) < 1e-11 < 1e-3 < difference(bad, expected)


def test_the_remainder_is_in_the_first_block_and_elsewhere_it_is_seen(plain):
    assert block_lengths(7, 2) == [3, 2, 2] and block_lengths(21) == [11, 10] and block_lengths(241)[:2] == [11, 10]
    network, x, context = ours(plain, torch.float64), video(torch.float64), prompt(torch.float64)
    last = written(network, x, context, [2, 2, 3])[0]
    assert difference(torch.cat(last, 2), torch.cat(written(network, x, context)[0], 2)) > 1e-3


def test_sums_are_float32_where_the_model_is_bfloat16(plain):
    """In bfloat16 the divisor of 24 blocks is off by up to 1.3 %: what is small is lost beside what is there."""
    network, x, context = ours(plain, torch.bfloat16), video(torch.bfloat16, 48), prompt(torch.bfloat16)
    state = BlockState()
    exact, rounded = torch.zeros(()), torch.zeros((), dtype=torch.bfloat16)
    for part in x.split(2, 2):
        before = state.kept["total"].clone() if state.kept else 0.0
        call(network, part, context, 0, state, True)
        own = state.kept["total"] - before
        exact, rounded = exact + own.double(), rounded + own.to(torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in state.kept.items()} == {
        "sums": torch.float32,
        "total": torch.float32,
        "left": torch.bfloat16,
    }
    used = exact.abs() > 1e-3
    assert ((state.kept["total"] - exact).abs() / exact)[used].max() < 1e-5
    assert ((rounded.double() - exact).abs() / exact)[used].max() > 3e-3
