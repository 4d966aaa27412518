"""The part of a run in which a ControlNet acts."""

from __future__ import annotations

import pytest
import torch
from sana_nodes.networks.controlnet import acts_at
from sana_nodes.samplers.flow_match import FlowMatch
from sana_nodes.samplers.trigflow import TrigFlow


@pytest.mark.parametrize("sampling", [TrigFlow(), FlowMatch(3.0)], ids=["sprint", "flow"])
@pytest.mark.parametrize("start", [0.0, 0.05, 0.3, 0.6])
def test_it_begins_where_it_is_asked_to(sampling, start):
    first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(1.0)
    levels = torch.tensor([sampling.percent_to_sigma(share) for share in (0.01, 0.2, 0.5, 0.9)])
    acting = [acts_at(sampling, level[None], first, last) for level in levels]
    assert acting == [start <= share for share in (0.01, 0.2, 0.5, 0.9)]
