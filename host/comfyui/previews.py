"""Live previews of DC-AE's latents in ComfyUI's own previewer: found from the VAE at hand, and kept.

The map of an autoencoder is fitted at the first preview that wants it, and written to sana-nodes in
ComfyUI's user folder, so that a run whose VAE is not loaded yet has it too.
"""

from __future__ import annotations

import json
import logging
import weakref
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import comfy.latent_formats
import folder_paths

from ...model_loaders.tiny_decoder import load_tiny_decoder
from ...networks.previews import PreviewMap, TinyDecoder, fingerprint, fit_preview

logger = logging.getLogger(__name__)

KEPT = 32
"""Maps that the file holds at most."""

PUBLISHED_GAIN = 1 / 0.41407
"""DC-AE's latents are a LATENT times this; tsd was made for the published autoencoders alone."""


_loaded: weakref.WeakSet = weakref.WeakSet()
"""The image VAEs that are loaded: a MODEL that came without one is coloured by them where they agree."""


class Previewing:
    """What a latent format knows of the VAE that its latents are for."""

    def __init__(self):
        self.vae = None

    def pair(self, vae) -> None:
        self.vae = weakref.ref(vae)

    def _vae(self):
        """The paired VAE, else a loaded one; None where those that are loaded have different latents."""
        paired = self.vae and self.vae()
        if paired is not None:
            return paired
        found = {vae.sana_fingerprint: vae for vae in list(_loaded)}
        return next(iter(found.values())) if len(found) == 1 else None

    def map(self) -> PreviewMap | None:
        """The map of the paired VAE or of the one that is loaded, else the one that was kept, if there is one alone."""
        vae = self._vae()
        if vae is None:
            kept = [] if _loaded else list(_read().values())
            return kept[0] if len(kept) == 1 else None
        if vae.sana_preview is None:
            vae.sana_preview = _kept_or_found(vae)
        return vae.sana_preview

    def tiny_decoder(self) -> TinyDecoder | None:
        """tsd from models/vae_approx, where it is and the latents are those it was made for."""
        vae = self._vae()
        if not _can_reshape() or (vae is not None and abs(vae.sana_spec.gain[0] / PUBLISHED_GAIN - 1) > 1e-3):
            return None
        names = (name for name in folder_paths.get_filename_list("vae_approx") if Path(name).name.startswith("tsd"))
        path = next((folder_paths.get_full_path("vae_approx", name) for name in names), None)
        return path and _opened(Path(path), Path(path).stat().st_mtime_ns)


def _kept_or_found(vae) -> PreviewMap | None:
    kept = _read()
    if vae.sana_fingerprint not in kept:
        try:
            kept[vae.sana_fingerprint] = fit_preview(vae.encode, vae.sana_spec.spatial_ratio)
        except Exception as error:  # an image without its preview is better than none
            logger.warning("No preview: its colours could not be found (%s)", error)
            return None
        _write(kept)
    return kept[vae.sana_fingerprint]


def remember(vae) -> None:
    """An image VAE was loaded."""
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
    """ComfyUI 0.8 lets a format change a latent before its map; 0.3.64 does not."""
    return hasattr(comfy.latent_formats.LatentFormat, "latent_rgb_factors_reshape")


def _file() -> Path:
    return Path(folder_paths.get_user_directory()) / "sana-nodes" / "previews.json"


def _read() -> dict[str, PreviewMap]:
    try:
        return {key: PreviewMap(**value) for key, value in json.loads(_file().read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or not one of ours
        return {}


def _write(maps: dict[str, PreviewMap]) -> None:
    file, last = _file(), list(maps.items())[-KEPT:]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        half_written = file.with_suffix(".part")
        half_written.write_text(json.dumps({key: asdict(value) for key, value in last}), encoding="utf-8")
        half_written.replace(file)
    except OSError as error:
        logger.warning("The preview's colours could not be kept in %s: %s", file, error)
