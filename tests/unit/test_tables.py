"""The tables: a new family, latent space, sampler or label is a row, and nothing else has to be told of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes import samplers
from sana_nodes.model_loaders.files import kinds
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.files.kinds import Kind, Naming
from sana_nodes.model_loaders.files.listing import models_of_kind
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae
from sana_nodes.networks import prompts
from sana_nodes.networks.families import FAMILIES
from sana_nodes.networks.latent_spaces import DC_AE, LATENT_SPACES, LTX2, WAN, normalise, space_of
from sana_nodes.samplers import FLOW_SOLVERS, SAMPLERS, flow_match, flow_sigmas, flow_solver
from sana_nodes.samplers.trigflow import TrigFlow


def test_rewording_a_label_breaks_nothing(tmp_path, monkeypatch):
    """Labels are for people: programs branch on the members."""
    for member in (*Kind, *Naming):
        monkeypatch.setattr(member, "label", f"reworded {member.key}")
    save_file(tiny.transformer().state_dict(), tmp_path / "t.safetensors")
    save_file(tiny.autoencoder().state_dict(), tmp_path / "v.safetensors")
    assert load_transformer(tmp_path / "t.safetensors").spec.family is FAMILIES["sprint"]
    assert load_vae(tmp_path / "v.safetensors").spec.space is DC_AE
    assert models_of_kind([tmp_path], kinds.TRANSFORMERS) == ["t.safetensors"]
    with pytest.raises(UnusableFile, match="is a reworded sprint.*, not a reworded dc_ae"):
        load_vae(tmp_path / "t.safetensors")


def test_every_sampler_names_its_own_noise_levels(monkeypatch):
    """A third solver of flow matching gets the levels of its row, neither Euler's nor DPM-Solver++'s."""

    def levels(steps, total, shift):
        return torch.linspace(0.9, 0.1, steps)

    row = replace(SAMPLERS["euler"], name="third", sigmas=lambda *given: flow_match.sigmas_of_levels(levels, *given))
    monkeypatch.setitem(SAMPLERS, "third", row)
    monkeypatch.setattr(samplers, "FLOW_SOLVERS", (*FLOW_SOLVERS, "third"))
    assert torch.allclose(flow_sigmas(3, 8.0, "third"), torch.tensor([0.9, 0.5, 0.1, 0.0]))
    assert not torch.equal(flow_sigmas(3, 8.0, "euler"), flow_sigmas(3, 8.0, "dpm_solver++"))


@pytest.mark.parametrize("name", ["heun", "", "scm", "Euler"])
def test_a_name_that_the_table_lacks_is_an_error(name):
    """Also scm, which is a sampler and not a solver of flow matching."""
    with pytest.raises(ValueError, match="choose one of dpm_solver\\+\\+, euler"):
        flow_solver(name)


def test_families_refer_to_what_is_there():
    import diffusers

    for key, family in FAMILIES.items():
        assert family.key == key and Kind[key.upper()].key == key
        assert family.instruction in prompts.INSTRUCTIONS and hasattr(diffusers, family.module)
        sampling = family.parameterisation(family.flow_shift)
        rows = [SAMPLERS[name] for name in family.samplers]
        assert rows and all(isinstance(sampling, row.parameterisation) for row in rows)
        assert family.uses_angles == (rows[0].parameterisation is TrigFlow)
        assert Kind[key.upper()] in kinds.CLASSES[family.config_class or family.module]
    assert Kind.VIDEO not in kinds.CLASSES["SanaTransformer2DModel"]


def test_latent_spaces_are_told_apart_by_channels_and_frames():
    assert len({(row.channels, row.video) for row in LATENT_SPACES}) == len(LATENT_SPACES)
    assert (space_of(16, True), space_of(32, False), space_of(128, True)) == (WAN, DC_AE, LTX2)
    assert space_of(16, False) is None and space_of(5, True) is None
    samples = torch.randn(2, 16, 1, 2, 2)
    expected = (samples - torch.tensor(WAN.mean).view(1, 16, 1, 1, 1)) / torch.tensor(WAN.std).view(1, 16, 1, 1, 1)
    assert (normalise(WAN, samples) - expected).abs().max() < 1e-6
    assert normalise(DC_AE, samples) is samples
