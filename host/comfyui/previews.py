"""Live previews of DC-AE's latents in ComfyUI's own previewer, by a map that is fitted to the VAE.

The map of an autoencoder is fitted at the first preview that needs it, and stored in sana-nodes in
ComfyUI's user folder, for runs in which the VAE is not loaded yet.
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
"""The file holds at most so many maps."""

PUBLISHED_GAIN = 1 / 0.41407
"""The published autoencoders' latents are a LATENT times this; tsd was trained on them."""


_loaded: weakref.WeakSet = weakref.WeakSet()
"""The image VAEs that are loaded. They colour a MODEL without a paired VAE where their latents agree."""


class Previewing:
    """What a latent format knows of the VAE that decodes its latents."""

    def __init__(self):
        self.vae = None

    def pair(self, vae) -> None:
        self.vae = weakref.ref(vae)

    def _vae(self):
        """The paired VAE, else a loaded one; None where the loaded ones have different latents."""
        paired = self.vae and self.vae()
        if paired is not None:
            return paired
        found = {vae.sana_fingerprint: vae for vae in list(_loaded)}
        return next(iter(found.values())) if len(found) == 1 else None

    def map(self) -> PreviewMap | None:
        """The map of the paired VAE or of the loaded one; where none is loaded, the stored map if there is only one."""
        vae = self._vae()
        if vae is None:
            stored = [] if _loaded else list(_read().values())
            return stored[0] if len(stored) == 1 else None
        if vae.sana_preview is None:
            vae.sana_preview = _stored_or_fitted(vae)
        return vae.sana_preview

    def tiny_decoder(self) -> TinyDecoder | None:
        """tsd from models/vae_approx; None without the file, and for latents that it was not trained on."""
        vae = self._vae()
        if not _can_reshape() or (vae is not None and abs(vae.sana_spec.gain[0] / PUBLISHED_GAIN - 1) > 1e-3):
            return None
        names = (name for name in folder_paths.get_filename_list("vae_approx") if Path(name).name.startswith("tsd"))
        path = next((folder_paths.get_full_path("vae_approx", name) for name in names), None)
        return path and _opened(Path(path), Path(path).stat().st_mtime_ns)


def _stored_or_fitted(vae) -> PreviewMap | None:
    stored = _read()
    if vae.sana_fingerprint not in stored:
        try:
            stored[vae.sana_fingerprint] = fit_preview(vae.encode, vae.sana_spec.spatial_ratio)
        except Exception as error:  # a preview that fails must not end the run
            logger.warning("No preview: fitting its colours failed (%s)", error)
            return None
        _write(stored)
    return stored[vae.sana_fingerprint]


def remember(vae) -> None:
    """Note an image VAE that was loaded."""
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
        half_written = file.with_suffix(".part")
        half_written.write_text(json.dumps({key: asdict(value) for key, value in last}), encoding="utf-8")
        half_written.replace(file)
    except OSError as error:
        logger.warning("The preview's colours could not be stored in %s: %s", file, error)
