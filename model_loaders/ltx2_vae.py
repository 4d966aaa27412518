"""The LTX-2 video VAE of SANA-Video at 720p: diffusers' naming, to an AutoencoderKLLTX2Video."""

from __future__ import annotations

from .checkpoints import Checkpoint, UnusableFile, build_from_config, load_strictly


def build(checkpoint: Checkpoint) -> tuple[object, dict]:
    """The module, its weights mapped, and the fields of its VaeSpec."""
    config = checkpoint.config_with("latent_channels")
    if config is None:
        raise UnusableFile(
            f"{checkpoint.path} has no config.json; give the LTX-2 video VAE as its diffusers folder (vae)"
        )

    from diffusers import AutoencoderKLLTX2Video

    module = build_from_config(AutoencoderKLLTX2Video, config, checkpoint.path)
    load_strictly(module, checkpoint)
    _check_streamable(module.config, checkpoint)
    fields = {
        "family": "ltx2",
        "latent_channels": module.config.latent_channels,
        "spatial_ratio": module.config.patch_size * _halvings(module.config, "spatial"),
        "temporal_ratio": _halvings(module.config, "temporal"),
        "gain": tuple(module.latents_std.tolist()),
        "offset": tuple(module.latents_mean.tolist()),
    }
    return module, fields


def _halvings(config, axis: str) -> int:
    """By how much the encoder's stages shrink an axis."""
    return 2 ** sum(kind in (axis, "spatiotemporal") for kind in config.downsample_type)


def _check_streamable(config, checkpoint: Checkpoint) -> None:
    """UnusableFile for the variants of LTX's VAE that SANA-Video does not use: noise and times in the decoder."""
    noisy = config.decoder_inject_noise
    if config.timestep_conditioning or (any(noisy) if isinstance(noisy, (list, tuple)) else noisy):
        raise UnusableFile(
            f"{checkpoint.path} is an LTX VAE whose decoder takes noise or a time; SANA-Video uses that of LTX-2"
        )
    if config.patch_size_t != 1 or "conv" in config.downsample_type:
        raise UnusableFile(f"{checkpoint.path} is an LTX VAE of another layout than LTX-2's, which SANA-Video uses")
