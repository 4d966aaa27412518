"""Frames to a file, one at a time: a video through imageio's ffmpeg, or numbered pictures.

Files are written under another name and renamed when they are whole, so that nothing half-written stays.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from . import tags as tagging
from .formats import VIDEO_FORMATS, VideoFormat

LEAST_SPACE = 1 << 20
"""Bytes that must be free before a file is begun."""


class CannotWrite(OSError):
    """A file that could not be written, with the reason; nothing of it is left."""


def check_folder(folder: Path) -> None:
    """CannotWrite where a file cannot be made in a folder (it is made when needed)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CannotWrite(f"cannot write into {folder}: {error.strerror}; choose another output folder") from error
    if free < LEAST_SPACE:
        raise CannotWrite(f"no space is left for {folder}; free some, or choose another output folder")


def check_video(fps: float, format: str, quality: int, audio: dict | None = None) -> None:
    """ValueError, saying what to give, for settings that make no video."""
    if not fps > 0 or fps > 1000:
        raise ValueError(f"fps is {fps}; give the frames per second, above 0 and at most 1000, such as 16")
    if format not in VIDEO_FORMATS:
        raise ValueError(f"format is {format!r}; choose one of {', '.join(VIDEO_FORMATS)}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; give a number from 1 to 100")
    if audio is not None and VIDEO_FORMATS[format].audio is None:
        raise ValueError(f"{format} has no sound: choose mp4-h264, webm-vp9 or mkv-ffv1, or leave audio out")


def to_bytes(frame: torch.Tensor) -> np.ndarray:
    """A frame [H, W, C] in [0, 1] as bytes [H, W, 3], rounded; grey becomes RGB and alpha is dropped."""
    frame = frame.detach().to("cpu", torch.float32)
    if frame.shape[-1] == 1:
        frame = frame.expand(-1, -1, 3)
    frame = torch.nan_to_num(frame[..., :3]).clamp(0.0, 1.0)
    return (frame * 255.0).round().to(torch.uint8).contiguous().numpy()


def write_video(
    path: Path,
    pieces: Iterable[torch.Tensor],
    fps: float,
    format: str = "mp4-h264",
    quality: int = 80,
    tags: dict | None = None,
    audio: dict | None = None,
) -> Path:
    """Write frames, given as pieces [n, H, W, C] in [0, 1], to ``path`` (its suffix is the format's).

    ``tags``: name to a value that JSON can hold. ``audio``: ComfyUI's, ``waveform`` [1, channels, samples]
    and ``sample_rate``; it is cut at the video's end. Raises CannotWrite where the disk or ffmpeg fails.
    """
    check_video(fps, format, quality, audio)
    kind, texts = VIDEO_FORMATS[format], tagging.as_text(tags or {})
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None or not len(first):
        raise ValueError("there are no frames to save")
    with _renamed_when_whole(path) as half, tempfile.TemporaryDirectory() as room:
        command = _command(kind, first.shape[1:3], fps, quality, audio, texts, Path(room))
        _feed([*command, str(half)], _frames(first, pieces, kind.even))
        if texts and callable(kind.tags):
            kind.tags(half, texts)
    return path


def _frames(first: torch.Tensor, others: Iterator[torch.Tensor], even: bool) -> Iterator[np.ndarray]:
    size = first.shape[1:3]
    piece = first
    while piece is not None:
        if piece.shape[1:3] != size:
            raise ValueError(f"a frame is {list(piece.shape[1:3])} where the first was {list(size)}")
        for frame in piece:
            data = to_bytes(frame)
            if even and (size[0] % 2 or size[1] % 2):
                data = np.pad(data, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
            yield data
        piece = next(others, None)


def _command(kind: VideoFormat, size, fps: float, quality: int, audio, texts: dict[str, str], room: Path) -> list[str]:
    import imageio_ffmpeg

    height, width = (side + side % 2 if kind.even else side for side in size)
    rate = str(Fraction(fps).limit_denominator(1001))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", rate, "-i", "-"]
    inputs, sound = 1, []
    if audio is not None:
        _write_wave(room / "sound.wav", audio)
        command += ["-i", str(room / "sound.wav")]
        sound, inputs = ["-map", "0:v", "-map", "1:a", *kind.audio, "-shortest"], 2
    if texts and kind.tags == "container":
        (room / "tags.txt").write_text(tagging.ffmetadata(texts), encoding="utf-8")
        command += ["-f", "ffmetadata", "-i", str(room / "tags.txt"), "-map_metadata", str(inputs)]
    return [*command, *sound, *kind.arguments(quality)]


def _write_wave(path: Path, audio: dict) -> None:
    samples = (audio["waveform"][0].detach().cpu().float().clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(int(audio["sample_rate"]))
        file.writeframes(samples.T.contiguous().numpy().tobytes())


def _feed(command: list[str], frames: Iterator[np.ndarray]) -> None:
    """Run ffmpeg over frames; whatever stops this stops ffmpeg too."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        try:
            try:
                for frame in frames:
                    process.stdin.write(frame)
                process.stdin.close()
            except BrokenPipeError:
                pass  # ffmpeg ended early; what it said is read below
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            said.seek(0)
            reason = said.read().decode(errors="replace").strip().splitlines()
            raise CannotWrite(
                f"cannot write {command[-1]}: ffmpeg ended with {process.returncode} "
                f"({reason[-1] if reason else 'it said nothing'}); is there space left on the disk?"
            )


@contextmanager
def _renamed_when_whole(path: Path) -> Iterator[Path]:
    check_folder(path.parent)
    half = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def write_frame(path: Path, frame: torch.Tensor, tags: dict | None = None) -> Path:
    """Write one frame [H, W, C] in [0, 1] as a picture of the suffix's format, with tags inside."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    texts = tagging.as_text(tags or {})
    options = {".png": {"compress_level": 4}, ".jpg": {"quality": 95}, ".webp": {"quality": 90}}[path.suffix]
    if texts and path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        for name, text in texts.items():
            options["pnginfo"].add_text(name, text)
    elif texts:
        options["exif"] = tagging.exif(texts)
    try:
        with _renamed_when_whole(path) as half:
            Image.fromarray(to_bytes(frame)).save(half, **options)
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(
            f"cannot write {path}: {error.strerror or error}; is there space left on the disk?"
        ) from error
    return path
