"""One video file that libav is writing: frames in, packets out, with sound up to each frame's end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from .formats import OWN_PALETTE, VideoFormat
from .sound import Sound

COMMON_RATE = 48_000
"""The sample rate, in hertz, of sound whose own rate its encoder does not have."""


def _os_errors(method: Callable) -> Callable:
    """libav's errors as OSError: those of the system as they are, the encoder's under its name."""

    @wraps(method)
    def run(self, *given):
        import av

        try:
            return method(self, *given)
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            message = f"{self.kind.encoder} failed: {error.strerror}"
            raise OSError(error.errno, f"{message} ({error.filename})" if error.filename else message) from error

    return run


class Encoder:
    """A context manager over ``file``: frames of ``size`` (width, height) at ``rate`` frames per second.

    Leaving it without an error completes the file. Raises OSError, with errno and the system's or libav's reason.
    """

    @_os_errors
    def __init__(
        self,
        file: Path,
        kind: VideoFormat,
        size: tuple[int, int],
        rate: Fraction,
        quality: int,
        texts: dict[str, str],
        sound: Sound | None,
    ):
        import av

        self.kind, self.rate, self.sound = kind, rate, sound
        self.clock = Fraction(1, kind.ticks) if kind.ticks else 1 / rate
        self.count, self.last, self.heard = 0, -1, 0
        self.container = av.open(str(file), "w", format=kind.container, options=dict(kind.mux))
        try:
            if kind.finish is None:
                self.container.metadata.update(texts)
            self.video = self._video_stream(size, quality)
            self.audio: Any = None if sound is None else self._audio_stream()
            self.graph = _graph(kind, size, self.clock)
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Encoder:
        return self

    @_os_errors
    def __exit__(self, kind, *_) -> None:
        import av

        try:
            if kind is None:
                self._flush()
                self.container.close()
        finally:
            with suppress(av.FFmpegError):  # after an error the first one is reported; a second close does nothing
                self.container.close()

    @_os_errors
    def add(self, pixels: np.ndarray) -> None:
        """Encode a frame, uint8 [height, width, 3]."""
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self._time_stamp(), self.clock
        self.graph.push(frame)
        self._drain()
        self.count += 1
        if self.sound is not None:
            self._add_sound(self.sound)

    def _time_stamp(self) -> int:
        """The frame's beginning in ticks: the exact time rounded, so that the average rate is right."""
        self.last = max(round(self.count / self.rate / self.clock), self.last + 1)
        return self.last

    def _drain(self) -> None:
        import av

        while True:
            try:
                frame = self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self.container.mux(self.video.encode(frame))

    def _add_sound(self, sound: Sound) -> None:
        import av

        samples = sound.until(self.heard, self.count / self.rate)
        if not samples.shape[1]:
            return
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, self.heard, Fraction(1, sound.rate)
        self.heard += samples.shape[1]
        self.container.mux(self.audio.encode(frame))

    def _flush(self) -> None:
        self.graph.push(None)
        self._drain()
        for stream in (self.video, self.audio):
            if stream is not None:
                self.container.mux(stream.encode(None))

    def _video_stream(self, size: tuple[int, int], quality: int):
        stream = self.container.add_stream(self.kind.encoder, rate=self.rate, options=self.kind.options(quality))
        stream.width, stream.height = size
        stream.pix_fmt = self.kind.pixels
        context = stream.codec_context
        context.time_base = self.clock
        context.thread_type = "AUTO"  # PyAV's own choice is slices, which cost x264 quality
        for name, value in self.kind.colour:
            setattr(context, name, value)
        return stream

    def _audio_stream(self):
        from av.codec import Codec

        kind = self.kind.sound
        rates = Codec(kind.encoder, "w").audio_rates
        stream = self.container.add_stream(
            kind.encoder, rate=self.sound.rate if rates is None or self.sound.rate in rates else COMMON_RATE
        )
        stream.codec_context.layout = self.sound.layout
        if kind.bit_rate is not None:
            stream.codec_context.bit_rate = kind.bit_rate
        return stream


def _graph(kind: VideoFormat, size: tuple[int, int], clock: Fraction):
    """The filters from RGB to the encoder's pixels."""
    import av

    graph = av.filter.Graph()
    last = graph.add_buffer(width=size[0], height=size[1], format="rgb24", time_base=clock)
    if kind.filters == OWN_PALETTE:
        last = _own_palette(graph, last)
    else:
        for name, arguments in (*kind.filters, ("format", kind.pixels)):
            following = graph.add(name, arguments)
            last.link_to(following)
            last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _own_palette(graph, source):
    """A palette of 256 colours for each frame, and the frame in it."""
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    used = graph.add("paletteuse", "new=1")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(used, 1, 0)
    palette.link_to(used, 0, 1)
    return used
