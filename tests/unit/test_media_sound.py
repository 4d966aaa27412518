"""Sound beside frames: as long as the video, whatever came in, and nothing written for what is malformed."""

from __future__ import annotations

import av
import pytest
import torch
from clips import SOUNDING, heard, moving_bar, tone
from reading import decoded
from sana_nodes.media import writer
from sana_nodes.media.formats import VIDEO_FORMATS

FRAMES, FPS = 48, 16.0


def saved(tmp_path, format, audio):
    path = tmp_path / f"clip{VIDEO_FORMATS[format].suffix}"
    return writer.write_video(path, [moving_bar(FRAMES)], FPS, format, audio=audio)


def loudness(samples: torch.Tensor) -> float:
    return samples.square().mean().sqrt().item()


@pytest.mark.parametrize("format", SOUNDING)
@pytest.mark.parametrize("seconds", [1.0, 2.6, 2.9, 3.0, 5.0])
def test_every_frame_stays_and_sound_is_as_long_as_the_video(tmp_path, format, seconds):
    path = saved(tmp_path, format, tone(seconds))
    assert len(decoded(path)) == FRAMES
    samples, rate = heard(path)
    assert abs(len(samples) / rate - FRAMES / FPS) < 0.06, "an encoder's block more or less"
    sounding = min(seconds, FRAMES / FPS)
    assert loudness(samples[: round((sounding - 0.1) * rate)]) == pytest.approx(0.5 / 2**0.5, rel=0.05)
    rest = samples[round((sounding + 0.1) * rate) :]
    assert not len(rest) or loudness(rest) < 1e-3


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
@pytest.mark.parametrize("shape", [(1, 2, 0), (1, 1, 0)])
def test_sound_of_no_samples_is_none(tmp_path, format, shape):
    path = saved(tmp_path, format, {"waveform": torch.zeros(shape), "sample_rate": 44100})
    if format == "webp":
        return
    with av.open(str(path)) as file:
        assert len(file.streams.video) == 1 and not file.streams.audio
    assert len(decoded(path)) == FRAMES


@pytest.mark.parametrize("format", SOUNDING)
@pytest.mark.parametrize("rate,channels", [(8000, 1), (12345, 2), (44100, 2), (192000, 1), (48000, 6)])
def test_any_rate_and_layout(tmp_path, format, rate, channels):
    path = saved(tmp_path, format, tone(3.0, rate, channels))
    samples, played = heard(path)
    assert abs(len(samples) / played - 3.0) < 0.3, "aac's block is a quarter of a second at 8 kHz"
    middle = samples[played : 2 * played]
    assert loudness(middle) == pytest.approx(0.5 / 2**0.5, rel=0.1)
    crossings = (middle[1:].sign() != middle[:-1].sign()).sum().item()
    assert crossings == pytest.approx(880, abs=6), "the pitch"


def test_lossless_sound_is_what_was_given(tmp_path):
    audio = tone(3.0)
    samples, _ = heard(saved(tmp_path, "mkv-ffv1", audio))
    assert (samples - audio["waveform"][0, 0]).abs().max() <= 1 / 32768


WAVE = torch.zeros(1, 2, 48000)
MALFORMED = [
    ({"waveform": WAVE}, "sample_rate"),
    ({"sample_rate": 48000}, "waveform"),
    ([WAVE, 48000], "AUDIO"),
    ({"waveform": WAVE[0], "sample_rate": 48000}, r"\[2, 48000\]"),
    ({"waveform": WAVE[:0], "sample_rate": 48000}, r"\[0, 2, 48000\]"),
    ({"waveform": WAVE[:, :0], "sample_rate": 48000}, "0 channels"),
    ({"waveform": torch.zeros(1, 9, 10), "sample_rate": 48000}, "9 channels"),
    ({"waveform": None, "sample_rate": 48000}, "NoneType"),
    ({"waveform": WAVE, "sample_rate": 0}, "sample_rate is 0"),
    ({"waveform": WAVE, "sample_rate": -1}, "sample_rate is -1"),
    ({"waveform": WAVE, "sample_rate": None}, "sample_rate is None"),
    ({"waveform": WAVE, "sample_rate": float("nan")}, "sample_rate is nan"),
    ({"waveform": WAVE / 0, "sample_rate": 48000}, "not numbers"),
    ({"waveform": WAVE + float("inf"), "sample_rate": 48000}, "not numbers"),
]


@pytest.mark.parametrize("audio,message", MALFORMED, ids=[message for _, message in MALFORMED])
@pytest.mark.parametrize("format", SOUNDING)
def test_malformed_sound_is_an_error_before_encoding(tmp_path, format, audio, message):
    def frames():
        raise AssertionError("frames were asked for")
        yield

    with pytest.raises(ValueError, match=message):
        writer.write_video(tmp_path / "out" / "clip.mp4", frames(), FPS, format, audio=audio)
    assert not list(tmp_path.iterdir())


def test_sound_for_a_format_that_has_none(tmp_path):
    for format in ("gif", "webp"):
        with pytest.raises(ValueError, match="has no sound"):
            saved(tmp_path, format, tone(1.0))
    assert not list(tmp_path.iterdir())
