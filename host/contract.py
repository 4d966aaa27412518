"""What nodes may ask of whoever runs the graph. Both hosts answer it; nodes know it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
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


def listed(folders: Mapping[str, str | Path], suffix: str, folder: str) -> dict[str, Path]:
    """Files of a suffix: in each of ``folders``, which are given by what ends a name there, also below ``folder``."""
    found = {}
    for ending, root in folders.items():
        for file in sorted([*Path(root).glob(f"*{suffix}"), *(Path(root) / folder).rglob(f"*{suffix}")]):
            if file.is_file():
                found[f"{file.relative_to(root).as_posix()}{ending}"] = file
    return found


@dataclass(frozen=True)
class Sampling:
    """What a sampler node asks of Host.sample; a host may answer several at once. ``options`` go to the function."""

    model: Any
    positive: list
    latent: dict
    noise: Any
    sigmas: Any
    function: Callable
    seed: int
    negative: list | None = None
    cfg: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def result(self, here: Host) -> dict:
        """The LATENT, by itself."""
        given = (self.model, self.positive, self.latent, self.noise, self.sigmas, self.function, self.seed)
        return here.sample(*given, negative=self.negative, cfg=self.cfg, **self.options)


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

    def pair(self, model: Any, vae: Any, clip: Any = None) -> None:
        """A MODEL, the VAE of its latents, which colours live previews, and the CLIP that it was trained with."""

    def control_net(self, loaded: Any, weight_dtype: str) -> Any:
        """A CONTROL_NET of a LoadedControlNet."""

    def weight_shapes(self, model: Any) -> dict[str, tuple[int, ...]]:
        """The weights of a MODEL's transformer: name in diffusers' module to shape."""

    def apply_lora(self, model: Any, loaded: Any, strength: float) -> Any:
        """A MODEL with a LoadedLora at ``strength``; the one given stays as it is."""

    def apply_perturbation(self, model: Any, perturbation: Any) -> Any:
        """A MODEL that samples with a Perturbation, or with None without; the one given stays as it is."""

    def compile(self, model: Any, mode: str, vae: Any = None) -> tuple[Any, Any]:
        """A MODEL in a mode of networks.accelerated.MODES, and a VAE, if there is one; those given stay as they are."""

    def encode_prompts(self, clip: Any, prompts: Sequence[Any]) -> list[list]:
        """CONDITIONING of each networks.prompts.Prompt, encoded together; ValueError for a CLIP that is not ours."""

    def model_spec(self, model: Any) -> Any | None:
        """The TransformerSpec of a MODEL of ours, else None."""

    def flow_shift(self, model: Any) -> float:
        """The flow shift that a MODEL samples with: its own, or what ModelSamplingSD3 gave it."""

    def describe_model(self, model: Any) -> str:
        """What a MODEL is, for an error message."""

    def empty_latent(self, shape: tuple[int, ...]) -> Any:
        """Zeros where the host keeps latents between nodes."""

    def sampler(self, function: Callable, **options) -> Any:
        """A SAMPLER of a function with k-diffusion's signature; ``options`` go to the function."""

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
        steps: int | None = None,
        **options,
    ) -> dict:
        """Run a sampler function over a LATENT: ``noise`` float32 of its shape; ``options`` go to the function.

        ``negative`` and a ``cfg`` other than 1 make it classifier-free guidance. ``steps``: how many the function
        tells its callback, if not one between two ``sigmas``.
        """

    def vae_spec(self, vae: Any, /) -> Any:
        """The VaeSpec of a VAE, of ours or the host's own; ValueError for a VAE that SANA does not use."""

    def decode_frames(self, vae: Any, samples: Any) -> Iterator:
        """A video LATENT's frames in order, [n, H, W, 3] at a time, one video after another."""

    def decode_stream(self, vae: Any, blocks: Iterator, total: int) -> Iterator:
        """The same of one video whose LATENT's samples come in ``blocks`` along time, ``total`` latent frames in all.

        A block is asked for when the frames of those before are taken. ValueError for a VAE that is not ours.
        """

    @property
    def interrupts(self) -> tuple[type[BaseException], ...]:
        """What is raised where the person interrupted."""

    def saved_files(self, suffix: str, folder: str) -> dict[str, Path]:
        """Files of a suffix in the input folder and in ``folder`` of the output folder: what to call them to path."""

    def check_prefix(self, prefix: str) -> None:
        """ValueError or OSError for a ``filename_prefix`` under which nothing can be saved; nothing is made."""

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        """Where files of ``prefix``, which was checked, are saved next; its folder is made."""

    def shown(self, target: SaveTarget, files: Sequence[Path], animated: bool, small: Any = None) -> dict:
        """The ``ui`` of a node that saved files; ``animated``: each plays.

        ``small``: the media.thumbnail.Thumbnail of a video that browsers do not play.
        """

    def underlay(self, image: Any) -> dict:
        """The ``ui`` of a node that shows an image [1, H, W, C] under its canvas; empty where there is no page."""

    def video(self, images: Any, fps: float, audio: Any) -> Any | None:
        """A VIDEO of frames [F, H, W, C], or None where there is no such type."""

    def tags(self, prompt: dict | None, extra_pnginfo: dict | None) -> dict:
        """The tags of a saved file, by which the graph that made it is loaded: ``workflow`` and ``prompt``, or none."""

    def note(self, text: str) -> None:
        """Tell the person of something that is no error and that they would not notice: in the log and on the page."""

    def status(self, text: str) -> None:
        """Say what a node is doing, where its progress cannot be counted; an empty text when it is done."""

    def progress(self, total: int, what: str) -> AbstractContextManager:
        """A progress bar: ``update(n)`` counts, and raises where the person interrupted."""
