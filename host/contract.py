"""What nodes may ask of whoever runs the graph. Both hosts answer it; nodes know it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class SaveTarget:
    """Where files are saved next: ``folder``/``name``_``number``_; ``subfolder`` is below the output folder."""

    folder: Path
    name: str
    number: int
    subfolder: str

    def path(self, suffix: str, offset: int = 0) -> Path:
        """The name ``offset`` numbers further; whether it is free is found when it is claimed (media.claims)."""
        return self.folder / f"{self.name}_{self.number + offset:05}_{suffix}"

    def names(self, suffix: str) -> Callable[[int], Path]:
        """The paths to try in turn, by offset: what media.writer takes."""
        return partial(self.path, suffix)


class Host(Protocol):
    """What a node may ask of whoever runs it.

    MODEL, CLIP, VAE, CONDITIONING, SIGMAS and SAMPLER are the host's own values, opaque to nodes;
    a LATENT is a dict whose ``samples`` are [B, C, H, W], the transformer's own (what the
    autoencoder gives, times its scale), or for video [B, C, F, H, W] as ComfyUI carries them (Wan's
    not normalised); its ``noise_mask`` is 0 where the latent is held. An IMAGE is [B, H, W, 3] in
    [0, 1], a video's frames one after another.
    """

    name: str

    def roots(self, kind: str) -> list[Path]:
        """Folders that hold models of a kind: diffusers, diffusion_models, text_encoders, vae, …"""

    def model(self, loaded: Any, weight_dtype: str, products: str = "native") -> Any:
        """A MODEL of a LoadedTransformer; ``products``: one of precision.PRODUCTS, where weights stay quantised."""

    def clip(self, loaded: Any, weight_dtype: str, device: str = "default", products: str = "native") -> Any:
        """A CLIP of a LoadedTextEncoder; ``device``: default or cpu. ``products`` as for a MODEL."""

    def vae(self, loaded: Any, weight_dtype: str) -> Any:
        """A VAE of a LoadedVae."""

    def pair(self, model: Any, vae: Any) -> None:
        """A MODEL and the VAE of its latents, which live previews are coloured by."""

    def control_net(self, loaded: Any, weight_dtype: str) -> Any:
        """A CONTROL_NET of a LoadedControlNet."""

    def weight_shapes(self, model: Any) -> dict[str, tuple[int, ...]]:
        """The weights of a MODEL's transformer: name in diffusers' module to shape."""

    def apply_lora(self, model: Any, loaded: Any, strength: float) -> Any:
        """A MODEL with a LoadedLora at ``strength``; the one given stays as it is."""

    def apply_perturbation(self, model: Any, perturbation: Any) -> Any:
        """A MODEL that samples with a Perturbation, or with None without; the one given stays as it is."""

    def encode_prompt(
        self, clip: Any, prompt: str, *, instruction: str, max_sequence_length: int, clean_caption: bool
    ) -> list:
        """CONDITIONING of one prompt; ValueError for a CLIP that is not ours."""

    def model_spec(self, model: Any) -> Any | None:
        """The TransformerSpec of a MODEL of ours, else None."""

    def flow_shift(self, model: Any) -> float:
        """The flow shift that a MODEL samples with: its own, or what ModelSamplingSD3 gave it."""

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
        negative: list | None = None,
        cfg: float = 1.0,
        **options,
    ) -> dict:
        """Run a sampler function over a LATENT: ``noise`` float32 of its shape; ``options`` go to the function.

        ``negative`` and a ``cfg`` other than 1 make it classifier-free guidance.
        """

    def vae_spec(self, vae: Any, /) -> Any:
        """The VaeSpec of a VAE, of ours or the host's own; ValueError for a VAE that SANA does not use."""

    def decode_frames(self, vae: Any, samples: Any) -> Iterator:
        """A video LATENT's frames in order, [n, H, W, 3] at a time, one video after another."""

    def check_prefix(self, prefix: str) -> None:
        """ValueError or OSError for a ``filename_prefix`` under which nothing can be saved; nothing is made."""

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        """Where files of ``prefix``, which was checked, are saved next; its folder is made."""

    def shown(self, target: SaveTarget, files: Sequence[Path], animated: bool) -> dict:
        """The ``ui`` of a node that saved files; ``animated``: each plays."""

    def tags(self, prompt: dict | None, extra_pnginfo: dict | None) -> dict:
        """The tags of a saved file, by which the graph that made it is loaded: ``workflow`` and ``prompt``, or none."""

    def progress(self, total: int, what: str) -> AbstractContextManager:
        """A progress bar: ``update(n)`` counts, and raises where the person interrupted."""
