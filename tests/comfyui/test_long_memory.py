"""LongSANA under ComfyUI's memory management, in-process."""

from __future__ import annotations

import drawing
import in_process
import long_films as films
import pytest
import torch
from sana_nodes.networks.long_video import state_bytes


@pytest.fixture(scope="module")
def parts(home, long_folder):
    with in_process.comfyui(home):
        yield films.load()


@pytest.mark.parametrize("cached", [0, 2])
def test_memory_is_made_ready_for_a_block_and_its_state(parts, monkeypatch, cached):
    """Not for the whole video, as ComfyUI would: its estimate is made from the latent's shape."""
    model = parts[0].model
    seen, usual = [], type(model).memory_required

    def estimated(self, shape, **given):
        needed = usual(self, shape, **given)
        seen.append((tuple(shape), needed - super(type(model), model).memory_required(shape, **given)))
        return needed

    monkeypatch.setattr(type(model), "memory_required", estimated)
    _, state = films.sampled(parts, films.prompt(parts), 33, cached_blocks=cached)
    kept = next(added for shape, added in seen if shape == (1, 16, 3, 4, 4))
    assert max(shape[2] for shape, _ in seen) == 3
    assert kept == state.bytes == state_bytes(model.diffusion_model.config, 1, 4, 4, cached)


@pytest.mark.parametrize("budget", [1, 60_000], ids=["novram", "lowvram"])
def test_a_model_loaded_in_part_gives_the_same(parts, budget):
    positive = films.prompt(parts)
    expected, _ = films.sampled(parts, positive)
    cpu = torch.device("cpu")
    parts[0].unpatch_model(cpu)
    parts[0].load(cpu, lowvram_model_memory=budget)
    try:
        assert films.apart(films.sampled(parts, positive)[0]["samples"], expected["samples"]) < 1e-5
    finally:
        parts[0].detach()


def test_nothing_of_a_run_stays_in_the_model(parts):
    positive = films.prompt(parts)
    films.sampled(parts, positive)
    network = drawing.network_of(parts[0])
    shapes = {tuple(value.shape) for value in network.state_dict().values()}
    left = [v for m in network.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    assert not [value for value in left if tuple(value.shape) not in shapes]
    options = parts[0].model_options["transformer_options"]
    assert not [name for name in options if name.startswith("sana_")]
