"""What a MODEL knows of the VAE and the text encoder that it was loaded with: colours of previews, and a warning."""

from __future__ import annotations

from .traps import ENCODER


def pair(model, vae, clip=None) -> None:
    """Note them at ComfyUI's model of a MODEL; ``vae`` and ``clip`` are a VAE and a CLIP of ours."""
    if clip is not None:
        setattr(model, ENCODER, clip.cond_stage_model.fingerprint)
    if (previewing := getattr(model.latent_format, "previewing", None)) is not None:
        previewing.pair(vae)


def pair_alike(made, model) -> None:
    """The same for a model that was loaded once more."""
    if (encoder := getattr(model, ENCODER, None)) is not None:
        setattr(made, ENCODER, encoder)
    if (previewing := getattr(model.latent_format, "previewing", None)) is not None:
        made.latent_format.previewing = previewing
