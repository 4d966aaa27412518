"""torch.compile of what takes many graphs: the blocks of a long video and of the next one, and Wan's decoder."""

from __future__ import annotations

import copy

import compiling
import drawing
import pytest
import tiny
import torch
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.samplers.block_causal import BlockCall, BlockState
from torch import _dynamo
from torch._dynamo.testing import CompileCounterWithBackend


def run_of_blocks(network, counter, cached: int, run: int) -> tuple[list, list[int]]:
    """The outputs and the states of a long video's calls, and how many graphs there were after each block."""
    state, generator, made, counts = BlockState(cached_blocks=cached), torch.Generator().manual_seed(run), [], []
    for number, frames in enumerate((3, 2, 2, 2, 2)):
        words = torch.randn(1, 5 + 3 * number + run, 48, generator=generator)
        for time in (1000.0, 889.0, 0.0):
            x = torch.randn(1, 16, frames, 6, 10, generator=generator)
            call = BlockCall(state, writes=time == 0)
            made.append(network(x, words, torch.tensor([time]), return_dict=False, block=call)[0])
            made.extend(tensor.clone() for tensor in state.kept.values())
        counts.append(counter.frame_count)
    return made, counts


@pytest.mark.parametrize("cached", [0, 2], ids=["all", "window"])
@pytest.mark.parametrize("part", ["whole", "blocks"])
def test_blocks_of_a_long_video_share_graphs(part, cached):
    """Reading and writing are two; the second block's frames, fewer, are once more for every length of a block."""
    network = use_fast_transformer(tiny.video_transformer()).requires_grad_(False)
    compiled, counter = copy.deepcopy(network), CompileCounterWithBackend("aot_eager")
    _dynamo.reset()
    for one in [compiled] if part == "whole" else compiled.transformer_blocks:
        one.compile(backend=counter, fullgraph=True)
    graphs = []
    with torch.no_grad():
        for run in range(3):
            made, counts = run_of_blocks(compiled, counter, cached, run)
            expected, _ = run_of_blocks(network, counter, cached, run)
            assert max(float((one - other).abs().max()) for one, other in zip(made, expected)) < 1e-5
            assert counts[1:] == [counts[1]] * 4, counts
            graphs.append(counts[-1])
    assert graphs[1] == graphs[2] <= _dynamo.config.recompile_limit * (1 if part == "whole" else 2)
    assert part == "whole" or graphs[0] == graphs[1], "of the whole what makes the state is compiled too"


@pytest.fixture
def counter():
    with compiling.counted() as counter:
        yield counter


@torch.no_grad()
def test_the_decoder_of_a_video(host, counter, video_references):
    """Frames of a whole video, and of one whose latents come in blocks; the VAE that is given stays as it is."""
    model, _, vae = drawing.call("SanaLoadPipeline", pipeline="tiny-video")
    _, fast = drawing.call("SanaCompile", model=model, mode="blocks", vae=vae)
    latents = torch.randn(1, 16, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    counts = []
    for decoder in (vae, fast):
        frames = torch.cat(list(host.decode_frames(decoder, latents)))
        blocks = torch.cat(list(host.decode_stream(decoder, iter(latents.split(2, dim=2)), 4)))
        assert frames.shape == (13, 48, 64, 3) and drawing.difference(frames, blocks) < drawing.ROUNDING
        counts.append((counter.frame_count, frames))
    (before, expected), (after, made) = counts
    assert before == 0 < after and drawing.difference(made, expected) < drawing.ROUNDING


def test_the_decoder_of_wan_in_several_sizes():
    """A video of another length, and after two sizes one of a third, take no other graph."""
    sizes = [(5, 4, 6), (3, 4, 6), (4, 6, 8), (4, 6, 10)]
    counts = compiling.graphs_of_wan(tiny.wan_vae().requires_grad_(False), sizes)
    assert counts[0] == counts[1] and counts[2] == counts[3] < 40
