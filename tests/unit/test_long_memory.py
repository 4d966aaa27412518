"""What a long video costs: the state at the published size, and the work of a block; memory is in tests/slow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.networks.long_video import state_bytes
from sana_nodes.samplers.block_causal import BlockCall, BlockState
from torch.utils.flop_counter import FlopCounterMode

VIDEO_2B = {"num_attention_heads": 20, "attention_head_dim": 112, "mlp_ratio": 3.0}


@pytest.fixture(scope="module")
def published():
    """Two of the 20 layers of SANA-Video 2B as it is published, on the meta device."""
    from diffusers import SanaVideoTransformer3DModel

    with torch.device("meta"):
        return use_fast_transformer(SanaVideoTransformer3DModel(**VIDEO_2B, num_layers=2).to(torch.bfloat16).eval())


def work(network, frames: int, state: BlockState | None, writes=False) -> int:
    """Floating-point operations of one call on frames of 832 x 480."""
    x = torch.empty(1, 16, frames, 60, 104, dtype=torch.bfloat16, device="meta")
    words = torch.empty(1, 300, 2304, dtype=torch.bfloat16, device="meta")
    time = torch.empty(1, dtype=torch.bfloat16, device="meta")
    given = {} if state is None else {"block": BlockCall(state, writes)}
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(x, words, time, return_dict=False, **given)
    return counted.get_total_flops()


def test_the_state_at_480p_and_the_work_of_blocks(published):
    """The 19.1 MiB of the sums of 20 layers, 0.2 of their divisors and 133.3 of the frames before."""
    state = BlockState()
    calls = [work(published, 11, state, True)] + [work(published, 10, state, True) for _ in range(3)]
    whole = state_bytes(SimpleNamespace(**VIDEO_2B, num_layers=20), 1, 1560, 2)
    assert 10 * state.bytes == 10 * state_bytes(published.config, 1, 1560, 2) == whole == 160_025_600
    assert abs(whole / 2**20 - 152.5) < 0.2
    assert len(set(calls[1:])) == 1 and state.start == 41
    reading = work(published, 10, state)
    assert abs(reading / calls[1] - 1) < 0.01
    whole = work(published, 21, None)
    ratio = 100 * whole / (5 * (calls[0] + calls[1]))
    assert 19 < ratio < 21, "50 steps with guidance are 100 calls of 21 frames, and blocks 5 calls of 11 and of 10"
