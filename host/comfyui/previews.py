"""Live previews in ComfyUI's own previewer, by a map that is fitted to the VAE or, for published ones, ComfyUI's.

The map of an autoencoder is fitted at the first preview that needs it, and stored in sana-nodes in
ComfyUI's user folder, for runs in which the VAE is not loaded yet.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import comfy.latent_formats
import folder_paths
import latent_preview
import torch

from ...model_loaders.files.whole import written_whole
from ...model_loaders.tiny_decoder import load_tiny_decoder
from ...networks.latent_spaces import DC_AE, LTX2, WAN, LatentSpace, normalise
from ...networks.previews import PreviewMap, TinyDecoder, fingerprint, fit_preview, moving_frame

logger = logging.getLogger(__name__)

KEPT = 32
"""The file holds at most so many maps."""

PUBLISHED_GAIN = 1 / 0.41407
"""The published autoencoders' latents are a LATENT times this; tsd was trained on them."""


_loaded: weakref.WeakSet = weakref.WeakSet()
"""The VAEs that are loaded. They colour a MODEL without a paired VAE where their latents agree."""


class Previewing:
    """What a latent format knows of the VAE that decodes its latents.

    ``core``: ComfyUI's map for the published autoencoder of this latent space, if there is one.
    """

    def __init__(self, space: LatentSpace = DC_AE, core: PreviewMap | None = None):
        self.space, self.core = space, core
        self.vae: weakref.ref | None = None

    def pair(self, vae) -> None:
        self.vae = weakref.ref(vae)

    def _vae(self):
        """The paired VAE, else a loaded one; None where the loaded ones have different latents."""
        paired = self.vae and self.vae()
        if paired is not None:
            return paired
        found = {vae.sana_fingerprint: vae for vae in self._loaded()}
        return next(iter(found.values())) if len(found) == 1 else None

    def _loaded(self) -> list:
        return [vae for vae in list(_loaded) if vae.sana_spec.space == self.space]

    def map(self) -> PreviewMap | None:
        """The map of the paired VAE or of the loaded one; where none is loaded, ComfyUI's or the only stored one."""
        vae = self._vae()
        if vae is None:
            return self.core or self._only_stored()
        if vae.sana_preview is None:
            vae.sana_preview = _stored_or_fitted(vae, self.core)
        return vae.sana_preview

    def _only_stored(self) -> PreviewMap | None:
        maps = [] if self._loaded() else _read().values()
        stored = [found for found in maps if len(found.factors) == self.space.channels]
        return stored[0] if len(stored) == 1 else None

    def tiny_decoder(self) -> TinyDecoder | None:
        """tsd from models/vae_approx; None without the file, and for latents that it was not trained on."""
        vae = self._vae()
        if not _can_reshape() or (vae is not None and abs(vae.sana_spec.gain[0] / PUBLISHED_GAIN - 1) > 1e-3):
            return None
        names = (name for name in folder_paths.get_filename_list("vae_approx") if Path(name).name.startswith("tsd"))
        path = next((folder_paths.get_full_path("vae_approx", name) for name in names), None)
        return path and _opened(Path(path), Path(path).stat().st_mtime_ns)


def _encoding(vae) -> Callable[[torch.Tensor], torch.Tensor]:
    """An image [1, H, W, 3] to the transformer's latent of a frame [1, C, h, w]; of a video not of its first."""
    spec = vae.sana_spec

    def last_frame(image: torch.Tensor) -> torch.Tensor:
        still = image.expand(1 + spec.temporal_ratio, -1, -1, -1)
        return normalise(spec.space, vae.encode(still))[:, :, -1]

    return last_frame if spec.is_video else vae.encode


def _stored_or_fitted(vae, core: PreviewMap | None) -> PreviewMap | None:
    stored = _read()
    if vae.sana_fingerprint not in stored:
        try:
            stored[vae.sana_fingerprint] = fit_preview(_encoding(vae), vae.sana_spec.spatial_ratio, core)
        except Exception as error:  # a preview that fails must not end the run
            logger.warning("No preview: fitting its colours failed (%s)", error)
            return None
        _write(stored)
    return stored[vae.sana_fingerprint]


class VideoColours:
    """The previews of a core latent format for video: of a frame that moves, with a map of the VAE that is used."""

    previewing: Previewing
    tiny: str | None

    def use(self, core: comfy.latent_formats.LatentFormat, space: LatentSpace, maps: type) -> None:
        """Take over what ``core`` is, except for its previews; ``maps``: the core format with the published map."""
        mine = (*COLOURS, "taesd_decoder_name")
        self.__dict__.update({name: value for name, value in vars(core).items() if name not in mine})
        factors, bias = (getattr(maps(), name, None) for name in COLOURS[:2])
        known = PreviewMap(factors, bias or [0.0, 0.0, 0.0]) if factors else None
        self.previewing, self.tiny = Previewing(space, known), core.taesd_decoder_name

    @property
    def latent_rgb_factors(self):
        found = self.previewing.map()
        return found and found.factors

    @property
    def latent_rgb_factors_bias(self):
        found = self.previewing.map()
        return found and found.bias

    @property
    def latent_rgb_factors_reshape(self):
        return lambda latent: moving_frame(latent) if latent.ndim == 5 else latent

    @property
    def taesd_decoder_name(self) -> str | None:
        """ComfyUI's tiny decoder, which is for published latents."""
        return self.tiny if self.tiny and self.previewing.map() == self.previewing.core else None


COLOURS = ("latent_rgb_factors", "latent_rgb_factors_bias", "latent_rgb_factors_reshape")


class SanaWanFormat(VideoColours, comfy.latent_formats.Wan21):
    def __init__(self):
        self.use(comfy.latent_formats.Wan21(), WAN, comfy.latent_formats.Wan21)


class SanaLTX2Format(VideoColours, comfy.latent_formats.LTXV):
    def __init__(self):
        # LTX-2's map came to ComfyUI with its audio; before, there was that of the first LTX-Video
        maps = getattr(comfy.latent_formats, "LTXAV", comfy.latent_formats.LTXV)
        self.use(comfy.latent_formats.LTXV(), LTX2, maps)
        if LTX2_TINY in getattr(latent_preview, "VIDEO_TAES", ()):
            self.tiny = LTX2_TINY


LTX2_TINY = "taeltx_2"
"""The tiny decoder of LTX-2's latents, which newer versions of ComfyUI load from models/vae_approx."""


def remember(vae) -> None:
    """Note a VAE that was loaded."""
    vae.sana_fingerprint, vae.sana_preview = fingerprint(vae.first_stage_model.autoencoder), None
    _loaded.add(vae)


@lru_cache(maxsize=1)
def _opened(path: Path, changed: int) -> TinyDecoder | None:
    try:
        return load_tiny_decoder(path)
    except ValueError as error:
        logger.warning("No preview by tsd: %s", error)
        return None


def _can_reshape() -> bool:
    """Since ComfyUI 0.8 a format can change a latent before its map; in 0.3.64 it cannot."""
    return hasattr(comfy.latent_formats.LatentFormat, "latent_rgb_factors_reshape")


def _file() -> Path:
    return Path(folder_paths.get_user_directory()) / "sana-nodes" / "previews.json"


def _read() -> dict[str, PreviewMap]:
    try:
        return {key: PreviewMap(**value) for key, value in json.loads(_file().read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not there yet, or damaged
        return {}


def _write(maps: dict[str, PreviewMap]) -> None:
    file, last = _file(), list(maps.items())[-KEPT:]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            part.write_text(json.dumps({key: asdict(value) for key, value in last}), encoding="utf-8")
    except OSError as error:
        logger.warning("The preview's colours could not be stored in %s: %s", file, error)
