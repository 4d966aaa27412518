"""Which VAE colours a MODEL's live previews: its own, else the one that is loaded, never one of several."""

from __future__ import annotations

import gc
import weakref

import drawing
import in_process
import pytest
import tiny
import torch
from sana_nodes.networks.previews import fit_preview


@pytest.fixture
def loading(home, reference, monkeypatch, tmp_path):
    """Loaders of parts with no VAE loaded and no map kept before."""
    with in_process.comfyui(home):
        from sana_nodes.host.comfyui import previews

        folder = home / "models" / "vae" / "other-dc-ae"
        if not folder.is_dir():
            tiny.autoencoder(seed=9).save_pretrained(folder)
        monkeypatch.setattr(previews, "_loaded", weakref.WeakSet())
        monkeypatch.setattr(previews, "_file", lambda: tmp_path / "sana-nodes" / "previews.json")
        yield previews


def pipeline():
    return drawing.call("SanaLoadPipeline", pipeline="tiny")


def transformer():
    return drawing.call("SanaLoadTransformer", model_name="tiny")[0]


def vae(name: str = "tiny"):
    return drawing.call("SanaLoadVAE", vae_name=name)[0]


def colours(model) -> torch.Tensor | None:
    """What ComfyUI's previewer asks for when a run begins: the map's rows, its bias last."""
    form = model.model.latent_format
    return form.latent_rgb_factors and torch.tensor([*form.latent_rgb_factors, form.latent_rgb_factors_bias])


def own(vae) -> torch.Tensor:
    """The map of a VAE."""
    found = fit_preview(vae.encode, 32)
    return torch.tensor([*found.factors, found.bias])


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Two VAEs' maps differ by some tenths."""
    apart = (one - other).abs().max().item()
    assert apart < 1e-4 or apart > 0.05
    return apart < 1e-4


def test_an_unpaired_model_has_no_colours_where_two_vaes_with_other_latents_are_loaded(loading):
    model, first, other = transformer(), vae(), vae("other-dc-ae")
    assert first.sana_fingerprint != other.sana_fingerprint
    assert colours(model) is None
    assert not loading._file().exists(), "nothing was computed either"


def test_a_stored_map_does_not_decide_between_two(loading):
    model, first = transformer(), vae()
    assert alike(colours(model), own(first)) and loading._file().is_file()
    other = vae("other-dc-ae")
    assert colours(model) is None and other


def test_one_vae_colours_an_unpaired_model_by_its_map(loading):
    model, other = transformer(), vae("other-dc-ae")
    assert alike(colours(model), own(other))


def test_vaes_with_the_same_latents_agree(loading):
    model, first, again = transformer(), vae(), vae()
    assert first is not again
    assert alike(colours(model), own(first)) and alike(own(first), own(again))


def test_a_paired_model_has_its_own_whatever_else_is_loaded(loading):
    model, _, first = pipeline()
    unpaired, other = transformer(), vae("other-dc-ae")
    assert alike(colours(model), own(first)) and not alike(own(first), own(other))
    assert colours(unpaired) is None
    from sana_nodes import host as hosts

    hosts.current().pair(unpaired, other)
    assert alike(colours(unpaired), own(other)) and alike(colours(model), own(first))
    assert alike(colours(model.clone()), own(first)), "and so has what a node makes of it"


def test_a_vae_that_is_gone_has_no_say(loading):
    model, first, other = transformer(), vae(), vae("other-dc-ae")
    assert colours(model) is None
    del other
    gc.collect()
    assert alike(colours(model), own(first))


def test_the_map_that_was_kept_serves_while_no_vae_is_loaded(loading):
    model, loaded = transformer(), vae()
    found = colours(model)
    del loaded
    gc.collect()
    assert alike(colours(model), found)
    loaded = vae("other-dc-ae")
    assert alike(colours(model), own(loaded)) and not alike(own(loaded), found)
    del loaded
    gc.collect()
    assert colours(model) is None, "two are kept, and nothing says which it is"


def test_the_previewer_of_comfyui_follows(loading, monkeypatch):
    """No previewer at all for a MODEL without colours, and one with its map for another."""
    import comfy.cli_args
    import latent_preview

    monkeypatch.setattr(comfy.cli_args.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)

    def previewer(of):
        return latent_preview.get_previewer(torch.device("cpu"), of.model.latent_format)

    model, first = transformer(), vae()
    expected = own(first)[:-1].T
    assert alike(previewer(model).latent_rgb_factors, expected)
    paired, _, _ = parts = pipeline()
    other = vae("other-dc-ae")
    assert previewer(model) is None and other
    assert alike(previewer(paired).latent_rgb_factors, expected) and parts


def linked(folder, target):
    if not folder.exists():
        folder.symlink_to(target, target_is_directory=True)


def test_videos_show_the_colours_of_their_vae(loading, home):
    """The demo's VAE has latents of its own: ComfyUI's map for the published ones is not used, nor its tiny decoder."""
    import comfy.latent_formats

    linked(home / "models" / "diffusers" / "sana-video-demo", tiny.DEMO.parent / "sana-video-demo")
    model, _, autoencoder = drawing.call("SanaLoadPipeline", pipeline="sana-video-demo")
    form = model.model.latent_format
    assert isinstance(form, comfy.latent_formats.Wan21)
    found = torch.tensor([*form.latent_rgb_factors, form.latent_rgb_factors_bias])
    core = torch.tensor([*comfy.latent_formats.Wan21.latent_rgb_factors, [0.0, 0.0, 0.0]])
    assert (found - core).abs().max() > 0.05 and form.taesd_decoder_name is None
    colours = torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.9, 0.9, 0.1], [1.0, 1.0, 1.0]])
    errors = []
    for colour in colours:
        latent = form.process_in(autoencoder.encode(colour.expand(9, 64, 64, 3)))
        latent = form.latent_rgb_factors_reshape(latent)
        assert latent.shape[2] == 1
        shown = (latent[0, :, 0].movedim(0, -1).float() @ found[:-1] + found[-1]).clamp(-1, 1) / 2 + 0.5
        errors.append((shown.mean((0, 1)) - colour).abs().max().item())
    assert max(errors) < 0.3 and sorted(errors)[2] < 0.2, errors


def test_without_a_vae_of_ours_the_colours_are_comfyuis(loading, home, video_references):
    import comfy.latent_formats

    linked(
        home / "models" / "diffusion_models" / "tiny-video",
        home / "models" / "diffusers" / "tiny-video" / "transformer",
    )
    model = drawing.call("SanaLoadTransformer", model_name="tiny-video")[0]
    form = model.model.latent_format
    assert form.latent_rgb_factors == comfy.latent_formats.Wan21.latent_rgb_factors
    assert form.latent_channels == 16
