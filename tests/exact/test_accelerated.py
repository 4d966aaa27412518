"""Sana Compile: compiled blocks and CUDA graphs give the model's own result, and act within a call alone."""

from __future__ import annotations

import copy
import logging

import compiling
import pytest
import tiny
import torch
from network_calls import image_inputs, video_inputs
from sana_nodes.networks import accelerated, card_layers
from sana_nodes.networks.autoencoder import use_fast_autoencoder
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.networks.prompt_cache import PromptCache
from sana_nodes.networks.prompts import PromptTokens
from sana_nodes.networks.text_encoder import use_fast_text_encoder
from sana_nodes.samplers.block_causal import BlockCall, BlockState
from torch import _dynamo
from torch._dynamo.testing import CompileCounter
from transformers import DynamicCache


@pytest.fixture(autouse=True)
def clean():
    _dynamo.reset()
    yield
    _dynamo.reset()


def network_and_inputs(kind: str, length: int = 9, step: int = 0):
    if kind == "image":
        network = tiny.transformer()
        return network, image_inputs(network, batch=2, lengths=(3, length), masked=True, seed=step)
    network = tiny.video_transformer()
    return network, video_inputs(network, batch=2, lengths=(3, length), masked=True, seed=step)


@pytest.mark.parametrize("card", [False, True], ids=["processor", "card"])
@pytest.mark.parametrize("kept", [False, True], ids=["all computed", "prompt kept"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_blocks_share_a_graph_for_every_length_of_a_prompt(monkeypatch, kind, kept, card):
    if card:
        monkeypatch.setattr(card_layers, "CARDS", {"cpu"})
    network, _ = network_and_inputs(kind)
    fast = use_fast_transformer(copy.deepcopy(network)).requires_grad_(False)
    counter, counts = CompileCounter(), []
    blocks = accelerated.CompiledBlocks(fast, counter)
    for length in (9, 31, 12):
        for step in range(2):
            _, given = network_and_inputs(kind, length, step)
            with torch.no_grad():
                theirs = network(**given)[0]
                mine = blocks.call(fast, {**given, "kept": {}} if kept else given)[0]
            assert (mine - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())
        counts.append(counter.frame_count)
    assert counts == [2] * 3, "one graph for the first block, whose tokens lie otherwise, and one for the others"
    assert not _dynamo.utils.counters["graph_break"]


def test_blocks_are_compiled_within_the_call_alone():
    network, given = network_and_inputs("image")
    fast = use_fast_transformer(copy.deepcopy(network)).requires_grad_(False)
    counter = CompileCounter()
    blocks = accelerated.CompiledBlocks(fast, counter)
    with torch.no_grad():
        fast(**given)
    assert counter.frame_count == 0
    assert all(block._compiled_call_impl is None for block in fast.transformer_blocks)
    with pytest.raises(ZeroDivisionError), blocks.active():
        raise ZeroDivisionError
    assert all(block._compiled_call_impl is None for block in fast.transformer_blocks)


@pytest.mark.parametrize("card", [False, True], ids=["processor", "card"])
def test_the_decoder_of_dc_ae(monkeypatch, card):
    if card:
        monkeypatch.setattr(card_layers, "CARDS", {"cpu"})
    theirs = tiny.autoencoder().requires_grad_(False)
    mine, counter = use_fast_autoencoder(copy.deepcopy(theirs)), CompileCounter()
    blocks = accelerated.CompiledBlocks(mine, counter)
    latent = torch.randn(1, 32, 3, 5)
    with torch.no_grad(), blocks.active():
        assert (mine.decode(latent)[0] - theirs.decode(latent)[0]).abs().max() < 1e-5
    assert counter.frame_count >= 6 and not _dynamo.utils.counters["graph_break"]


def test_the_decoder_of_wan():
    """A video of another length takes no other graph; of other sizes: tests/slow/test_long_compile.py."""
    small = tiny.wan_vae(dim_mult=[1, 1, 1, 1], num_res_blocks=1).requires_grad_(False)
    counts = compiling.graphs_of_wan(small, [(3, 2, 3), (4, 2, 3)])
    assert 0 < counts[0] == counts[1]


def test_prompts_of_any_length_share_a_graph_of_gemmas_layers():
    """One for an instruction, one for prompts behind it, one for several of them at once; none for another layer."""
    module = use_fast_text_encoder(tiny.text_encoder()).requires_grad_(False)
    instruction, counter, counts = tuple(range(5, 95)), CompileCounter(), []
    plain = PromptCache(DynamicCache)
    fast = PromptCache(DynamicCache, acceleration=accelerated.CompiledBlocks(module, counter))
    for lengths in ((9,), (31,), (2,), (77,), (8, 20, 33), (11, 23)):
        wanted = [PromptTokens((*instruction, *range(length, 2 * length)), 89) for length in lengths]
        both = (cache.encode_all(module, wanted, "cpu") for cache in (plain, fast))
        assert all((one - other).abs().max() < 1e-5 for one, other in zip(*both))
        counts.append(counter.frame_count)
    assert counts == [2, 2, 2, 2, 3, 3] and not _dynamo.utils.counters["graph_break"]


def test_more_kinds_of_blocks_than_torch_compiles_by_itself():
    """torch.compile runs a ninth of a class as it is: a network whose blocks are all of other sizes."""

    class Block(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    class Network(torch.nn.Module):
        def __init__(self, kinds):
            super().__init__()
            self.transformer_blocks = torch.nn.ModuleList(Block(4 + n, 5 + n) for n in range(kinds))

        def forward(self, x):
            for block in self.transformer_blocks:
                x = block(x)
            return x

    kinds = _dynamo.config.recompile_limit + 3
    network, counter = Network(kinds).requires_grad_(False), CompileCounter()
    blocks = accelerated.CompiledBlocks(network, counter)
    for _ in range(2):
        blocks.call(network, {"x": torch.randn(2, 4)})
        assert counter.frame_count == kinds
    assert _dynamo.config.recompile_limit == kinds - 3, "only within a call"


def test_a_missing_compiler_is_an_error_that_says_what_to_do():
    def missing(graph, inputs):
        raise OSError("no cl.exe here")

    network, given = network_and_inputs("image")
    blocks = accelerated.CompiledBlocks(use_fast_transformer(network).requires_grad_(False), missing)
    with torch.no_grad(), pytest.raises(RuntimeError, match="set mode to off"):
        blocks.call(network, given)


class Recorded:
    """Stands for captures: a graph that computes again from the inputs that it fixed."""

    def __init__(self):
        self.count = 0

    def __call__(self, forward, inputs, module):
        self.count += 1
        fixed = {name: accelerated._copied(value) for name, value in inputs.items()}

        def replay(given):
            for name, value in given.items():
                accelerated._copy_into(fixed[name], value)
            return forward(**fixed)

        return replay


def test_graphs_are_made_once_for_each_shape_and_end_with_the_weights():
    network, given = network_and_inputs("image")
    fast = use_fast_transformer(copy.deepcopy(network)).requires_grad_(False)
    recorded = Recorded()
    graphs = accelerated.CudaGraphs(fast, recorded)

    def call(length: int, step: int):
        _, given = network_and_inputs("image", length, step)
        with torch.no_grad():
            return graphs.call(fast, {**given, "kept": {}})[0], network(**given)[0]

    for length, step in ((9, 0), (9, 1), (12, 2), (9, 3)):
        mine, theirs = call(length, step)
        assert (mine - theirs).abs().max() < 1e-5
    assert recorded.count == 2
    for one in (fast, network):  # as a LoRA does
        weight = one.transformer_blocks[0].attn1.to_q.weight
        weight.data = weight.data * 2
    mine, theirs = call(9, 4)
    assert (mine - theirs).abs().max() < 1e-5 and recorded.count == 3
    accelerated.release(tiny.transformer())
    assert graphs._graphs
    accelerated.release(fast)
    assert not graphs._graphs


def test_what_cannot_be_recorded_runs_without_and_says_so(caplog):
    def refuses(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    network, given = network_and_inputs("image")
    graphs = accelerated.CudaGraphs(network, refuses)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(graphs.call(network, given)[0], network(**given)[0])
    said = "mode graphs: operation not permitted when stream is capturing; the model runs without CUDA graphs"
    assert [record.message.endswith(said) for record in caplog.records].count(True) == 1


def test_a_long_video_runs_without_graphs_and_says_so(caplog):
    """A graph would read the state of the run that it was made in."""
    network, given = network_and_inputs("video")
    fast, recorded = use_fast_transformer(copy.deepcopy(network)).requires_grad_(False), Recorded()
    graphs, states = accelerated.CudaGraphs(fast, recorded), (BlockState(), BlockState())
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for writes in (True, False):
            mine = graphs.call(fast, {**given, "block": BlockCall(states[0], writes)})[0]
            assert torch.equal(mine, fast(**given, block=BlockCall(states[1], writes))[0])
    assert not recorded.count and states[0].start == states[1].start > 0
    said = "mode graphs: a call of a long video changes its run's state; the model runs without CUDA graphs"
    assert [record.message.endswith(said) for record in caplog.records].count(True) == 1


def test_modes(caplog):
    network, cpu = tiny.transformer(), torch.device("cpu")
    assert accelerated.accelerated(network, "off", cpu, "it") is None
    assert isinstance(accelerated.accelerated(network, "blocks", cpu, "it"), accelerated.CompiledBlocks)
    with caplog.at_level(logging.INFO):
        assert accelerated.accelerated(network, "graphs", cpu, "it") is None
        assert accelerated.accelerated(tiny.ltx2_vae(), "blocks", cpu, "LTX-2") is None
    assert "there is no CUDA on this device (cpu); the model runs without" in caplog.text
    assert "leaves LTX-2 as it is" in caplog.text
    with pytest.raises(ValueError, match="choose one of blocks, off, graphs"):
        accelerated.accelerated(network, "block", cpu, "it")


def test_the_setting(monkeypatch):
    network, cpu = tiny.transformer(), torch.device("cpu")
    assert accelerated.by_setting(network, cpu, "it") is None
    monkeypatch.setenv(accelerated.SETTING, "blocks")
    assert isinstance(accelerated.by_setting(network, cpu, "it"), accelerated.CompiledBlocks)
    monkeypatch.setenv(accelerated.SETTING, "yes")
    with pytest.raises(ValueError, match="SANA_NODES_COMPILE is 'yes'"):
        accelerated.by_setting(network, cpu, "it")
