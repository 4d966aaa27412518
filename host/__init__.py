"""Who runs the graph: a real ComfyUI, or the small embedded host. The nodes know this contract alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

NAMES = ("comfyui", "embedded")


class Host(Protocol):
    """What a node may ask of whoever runs it.

    MODEL, CLIP, VAE, CONDITIONING, SIGMAS and SAMPLER are the host's own values, opaque to nodes;
    a LATENT is a dict whose ``samples`` are [B, C, H, W], the transformer's own (what the
    autoencoder gives, times its scale); an IMAGE is [B, H, W, 3] in [0, 1].
    """

    name: str

    def roots(self, kind: str) -> list[Path]:
        """Folders that hold models of a kind: diffusers, diffusion_models, text_encoders, vae, …"""

    def model(self, loaded: Any, weight_dtype: str) -> Any:
        """A MODEL of a LoadedTransformer."""

    def clip(self, loaded: Any, weight_dtype: str, device: str = "default") -> Any:
        """A CLIP of a LoadedTextEncoder; ``device``: default or cpu."""

    def vae(self, loaded: Any, weight_dtype: str) -> Any:
        """A VAE of a LoadedVae."""

    def encode_prompt(
        self, clip: Any, prompt: str, *, instruction: str, max_sequence_length: int, clean_caption: bool
    ) -> list:
        """CONDITIONING of one prompt; ValueError for a CLIP that is not ours."""

    def model_spec(self, model: Any) -> Any | None:
        """The TransformerSpec of a MODEL of ours, else None."""

    def describe_model(self, model: Any) -> str:
        """What a MODEL is, for an error message."""

    def empty_latent(self, shape: tuple[int, ...]) -> Any:
        """Zeros where the host keeps latents between nodes."""

    def sampler(self, function: Callable) -> Any:
        """A SAMPLER of a function with k-diffusion's signature."""

    def sample(
        self,
        model: Any,
        positive: list,
        latent: dict,
        noise: Any,
        sigmas: Any,
        function: Callable,
        seed: int,
        **options,
    ) -> dict:
        """Run a sampler function over a LATENT: ``noise`` [B, C, H, W] float32; ``options`` go to the function."""


_current: Host | None = None


def current() -> Host:
    """The host in force: the one chosen with :func:`use`, else ComfyUI where we run inside it."""
    if _current is None:
        use("comfyui" if "comfy.model_management" in sys.modules else "embedded")
    return _current


def use(name: str) -> Host:
    """Choose the host for this process."""
    global _current
    if name == "comfyui":
        from .comfyui.bridge import ComfyHost

        _current = ComfyHost()
    elif name == "embedded":
        from .embedded.bridge import EmbeddedHost

        _current = EmbeddedHost()
    else:
        raise ValueError(f"host is {name!r}; choose one of {', '.join(NAMES)}")
    return _current
