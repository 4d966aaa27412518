"""Image files as ComfyUI 0.33's LoadImage reads them: through PyAV, and through Pillow what PyAV does not decode.

Which pixel format a file is converted to decides the last bits of its pixels, so the choices here are ComfyUI's:
eight-bit RGB and palettes through bytes, everything else through floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

BYTE_FORMATS = ("yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8")
"""Pixel formats that are converted to bytes and divided by 255."""

FLOAT_FORMATS = ("gbrpf32le", "gbrapf32le")
ALIGNMENT = 32
"""swscale's conversion to floats reads up to here beyond the right edge."""

DEEP_GREYS = {"gray16be": 1, "gray16le": 1, "ya16be": 2, "ya16le": 2}
"""Channels of the pixel formats that swscale before 9 (PyAV before 16) converts to wrong floats."""

NO_MASK = (64, 64)
"""Height and width of the empty mask of an image without alpha."""


def read_images(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE [N, H, W, 3] and MASK (1 - alpha, [N, H, W], or zeros [N, 64, 64]) of a file's N frames.

    Raises ValueError with the file's name for one that is no image or is cut short.
    """
    import av
    from PIL import UnidentifiedImageError

    try:
        return _stacked(list(_frames_by_av(path)) or list(_frames_by_pillow(path)))
    except (av.error.FFmpegError, UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image; it is damaged or of another format: {error}") from error


def _stacked(frames: list[tuple[np.ndarray, np.ndarray | None]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([torch.from_numpy(colours) for colours, _ in frames])
    empty = np.zeros(NO_MASK, np.float32)
    return images, torch.stack([torch.from_numpy(empty if alpha is None else 1.0 - alpha) for _, alpha in frames])


def _frames_by_av(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Colours [H, W, 3] and alpha [H, W] or None of each frame that FFmpeg decodes, in [0, 1]."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("there is no image in it")
        stream, pixel_format = container.streams.video[0], None
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                pixel_format = pixel_format or _pixel_format(frame)
                yield _split(_pixels(frame, pixel_format, stream.time_base))


def _pixel_format(frame) -> str:
    name = frame.format.name
    has_alpha = name == "pal8" or any(component.is_alpha for component in frame.format.components)
    if name in BYTE_FORMATS:
        return "rgba" if has_alpha else "rgb24"
    return FLOAT_FORMATS[has_alpha]


def _pixels(frame, pixel_format: str, time_base) -> np.ndarray:
    """A frame [H, W, 3 or 4] in [0, 1], the right way up."""
    import av

    if frame.format.name in DEEP_GREYS and av.library_versions["libswscale"] < (9,):
        array = _deep_grey(frame)
    elif pixel_format in FLOAT_FORMATS and frame.width % ALIGNMENT:
        array = _padded(frame, time_base).to_ndarray(format=pixel_format)[: frame.height, : frame.width]
    else:
        array = frame.to_ndarray(format=pixel_format)
    if frame.rotation:
        array = np.rot90(array, k=int(round(frame.rotation // 90)))
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / 255.0
    return np.ascontiguousarray(array)


def _deep_grey(frame) -> np.ndarray:
    """A frame of DEEP_GREYS [H, W, 3 or 4] in [0, 1], from its memory."""
    name, plane = frame.format.name, frame.planes[0]
    rows = np.frombuffer(plane, ">u2" if name.endswith("be") else "<u2").reshape(-1, plane.line_size // 2)
    pixels = rows[: frame.height].reshape(frame.height, -1, DEEP_GREYS[name])[:, : frame.width]
    return pixels[..., [0, 0, 0, 1][: pixels.shape[-1] + 2]].astype(np.float32) / 65535.0


def _padded(frame, time_base):
    """A frame with its right and lower edge repeated up to a multiple of the alignment."""
    import av

    right, below = -frame.width % ALIGNMENT, -frame.height % ALIGNMENT
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=time_base)
    pad = graph.add("pad", f"{frame.width + right}:{frame.height + below}:0:0")
    fill = graph.add("fillborders", f"left=0:right={right}:top=0:bottom={below}:mode=smear")
    sink = graph.add("buffersink")
    for first, second in ((source, pad), (pad, fill), (fill, sink)):
        first.link_to(second)
    graph.configure()
    source.push(frame)
    return sink.pull()


def _split(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    colours = np.ascontiguousarray(pixels[..., :3])
    return colours, np.ascontiguousarray(pixels[..., 3]) if pixels.shape[-1] == 4 else None


def _frames_by_pillow(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The same through Pillow: animated WebP. Frames of another size than the first are left out."""
    from PIL import Image, ImageOps, ImageSequence

    size = None
    with _lenient(Image.open, path) as opened:
        for frame in ImageSequence.Iterator(opened):
            frame = _lenient(ImageOps.exif_transpose, frame)
            size = size or frame.size
            if frame.size == size:
                alpha = frame.getchannel("A") if "A" in frame.getbands() else None
                yield _unit(frame.convert("RGB")), None if alpha is None else _unit(alpha)


def _lenient(step: Callable, argument):
    """A step of Pillow's, once more for a file that is cut short: a PNG keeps the rows that it has."""
    from PIL import ImageFile

    try:
        return step(argument)
    except (OSError, ValueError):
        usual, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            return step(argument)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = usual


def _unit(image) -> np.ndarray:
    return np.asarray(image).astype(np.float32) / 255.0
