"""ComfyUI's AUDIO as samples to encode: checked before anything is written, and cut or padded to the frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

LAYOUTS = {1: "mono", 2: "stereo", 5: "5.0", 6: "5.1"}
"""Number of channels to libav's name of their layout: those that aac, opus and flac all have."""

RATES = (1000, 655_350)
"""The lowest and highest sample rate in hertz; flac's header holds no higher one."""


@dataclass(frozen=True)
class Sound:
    """``samples``: float32 [channels, n] in [-1, 1]; ``rate``: hertz."""

    samples: np.ndarray
    rate: int

    @property
    def layout(self) -> str:
        return LAYOUTS[len(self.samples)]

    def until(self, start: int, seconds: Fraction) -> np.ndarray:
        """The samples from number ``start`` up to a time: float32 [channels, n], silence beyond the end."""
        end = int(seconds * self.rate)
        heard = self.samples[:, start:end]
        return np.pad(heard, ((0, 0), (0, end - start - heard.shape[1])))


def checked(audio: Mapping | None) -> Sound | None:
    """The Sound of an AUDIO, None where it holds no samples; ValueError says what is wrong with it."""
    if audio is None:
        return None
    if not isinstance(audio, Mapping) or "waveform" not in audio or "sample_rate" not in audio:
        raise ValueError("audio lacks its waveform or its sample_rate: connect an AUDIO, such as LoadAudio's")
    waveform = _checked_waveform(audio["waveform"])
    rate = _checked_rate(audio["sample_rate"])
    if not waveform.shape[-1]:
        return None
    samples = waveform.detach().to("cpu", torch.float32)
    if not torch.isfinite(samples).all():
        raise ValueError("audio holds values that are not numbers (NaN or infinite)")
    return Sound(samples.clamp(-1.0, 1.0).contiguous().numpy(), rate)


def is_empty(audio: Mapping | None) -> bool:
    """Whether an AUDIO is absent or holds no samples."""
    waveform = None if audio is None else audio.get("waveform")
    return audio is None or (isinstance(waveform, torch.Tensor) and waveform.ndim == 3 and not waveform.shape[-1])


def _checked_waveform(waveform: torch.Tensor) -> torch.Tensor:
    """The first sound, [channels, samples], of a batch."""
    if not isinstance(waveform, torch.Tensor) or waveform.ndim != 3 or not len(waveform):
        shape = list(waveform.shape) if isinstance(waveform, torch.Tensor) else type(waveform).__name__
        raise ValueError(f"audio's waveform is {shape}; give a tensor [1, channels, samples]")
    if waveform.shape[1] not in LAYOUTS:
        raise ValueError(f"audio has {waveform.shape[1]} channels; give 1 (mono), 2 (stereo), 5 or 6 (5.1)")
    return waveform[0]


def _checked_rate(rate) -> int:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"audio's sample_rate is {rate!r}; give hertz from {RATES[0]} to {RATES[1]}, such as 44100")
    return int(rate)
