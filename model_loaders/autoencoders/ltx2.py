"""The LTX-2 video VAE of SANA-Video at 720p: tensors in diffusers' naming to an AutoencoderKLLTX2Video."""

from __future__ import annotations

from ...networks.latent_spaces import LTX2, VaeSpec
from ..files.build import build_from_config, load_strictly
from ..files.checkpoint import Checkpoint, UnusableFile, Value


def build(checkpoint: Checkpoint) -> tuple[object, VaeSpec, dict[str, Value]]:
    """The module with memory-mapped weights, its spec, and the values of quantised weights."""
    own = checkpoint.config_with("latent_channels")
    if own is None:
        raise UnusableFile(
            f"{checkpoint.path} has no config.json; give the LTX-2 video VAE as its diffusers folder (vae)"
        )

    from diffusers import AutoencoderKLLTX2Video

    module = build_from_config(AutoencoderKLLTX2Video, checkpoint, own, dict)
    quantised = load_strictly(module, checkpoint)
    config = module.config
    _check_streamable(config, checkpoint)
    spec = VaeSpec(
        LTX2,
        config.latent_channels,
        config.patch_size * _halvings(config, "spatial"),
        _halvings(config, "temporal"),
        tuple(module.latents_std.tolist()),
        tuple(module.latents_mean.tolist()),
    )
    return module, spec, quantised


def _halvings(config, axis: str) -> int:
    """The factor by which the encoder's stages downsample an axis."""
    return 2 ** sum(kind in (axis, "spatiotemporal") for kind in config.downsample_type)


def _check_streamable(config, checkpoint: Checkpoint) -> None:
    """UnusableFile for variants of LTX's VAE that SANA-Video does not use: noise or timesteps in the decoder."""
    noisy = config.decoder_inject_noise
    if config.timestep_conditioning or (any(noisy) if isinstance(noisy, (list, tuple)) else noisy):
        raise UnusableFile(
            f"{checkpoint.path} is an LTX VAE whose decoder uses noise or timesteps; SANA-Video uses that of LTX-2"
        )
    if config.patch_size_t != 1 or "conv" in config.downsample_type:
        raise UnusableFile(f"{checkpoint.path} is an LTX VAE of another layout than LTX-2's, which SANA-Video uses")
