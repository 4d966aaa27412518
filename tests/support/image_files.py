"""Image files of every kind that a person may give to LoadImage, made at run time from seeded noise and ramps."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 56
ROTATION = 0x0112
"""Exif's tag of the orientation."""


def noise(*channels: int, most: int = 256, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, most, (height, width, *channels))


def ramp() -> Image.Image:
    rising = (np.indices((HEIGHT, WIDTH)).sum(0) * 2 % 256).astype(np.uint8)
    return Image.fromarray(np.stack([rising, np.flipud(rising), np.fliplr(rising)], -1))


def of(array: np.ndarray, mode: str | None = None) -> Image.Image:
    image = Image.fromarray(array.astype(np.uint8))
    return image.convert(mode) if mode else image


def plain(image: Callable[[], Image.Image], **options) -> Callable[[Path], None]:
    return lambda path: image().save(path, **options)


def grey_alpha() -> Image.Image:
    pixels = noise(2)
    return Image.merge("LA", [of(pixels[..., 0]), of(pixels[..., 1])])


def sixteen_bits(colour_type: int, channels: int) -> Callable[[Path], None]:
    """A 16-bit PNG by hand: Pillow writes grey ones alone."""

    def write(path: Path) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        rows = noise(channels, most=65536).astype(">u2")
        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
        body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)

    return write


def animated(path: Path) -> None:
    frames = [Image.fromarray(np.roll(np.asarray(ramp()), 7 * i, 1)) for i in range(3)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)


def turned(orientation: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        exif = Image.Exif()
        exif[ROTATION] = orientation
        ramp().save(path, quality=95, exif=exif)

    return write


def halved(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])

    return write


def rgb() -> Image.Image:
    return of(noise(3))


def grey() -> Image.Image:
    return of(noise())


MAKERS: dict[str, Callable[[Path], None]] = {
    "rgb.png": plain(rgb),
    "rgba.png": plain(lambda: of(noise(4))),
    "grey.png": plain(grey),
    "grey_alpha.png": plain(grey_alpha),
    "bit.png": plain(lambda: grey().convert("1")),
    "palette.png": plain(lambda: ramp().quantize(16)),
    "palette_trns.png": plain(lambda: ramp().quantize(16), transparency=bytes(range(0, 256, 16))),
    "grey_trns.png": plain(grey, transparency=7),
    "rgb_trns.png": plain(rgb, transparency=tuple(int(value) for value in noise(3)[0, 0])),
    "grey16.png": sixteen_bits(0, 1),
    "grey_alpha16.png": sixteen_bits(4, 2),
    "rgb16.png": sixteen_bits(2, 3),
    "rgba16.png": sixteen_bits(6, 4),
    "anim.gif": animated,
    "anim.webp": animated,
    "anim.png": animated,
    "still.webp": plain(ramp, lossless=True),
    "lossy.webp": plain(ramp, quality=80),
    "alpha.webp": plain(lambda: of(noise(4)), lossless=True),
    "plain.jpg": plain(ramp, quality=90),
    "444.jpg": plain(ramp, quality=90, subsampling=0),
    "grey.jpg": plain(lambda: ramp().convert("L")),
    "cmyk.jpg": plain(lambda: ramp().convert("CMYK"), quality=90),
    **{f"turned{n}.jpg": turned(n) for n in range(2, 9)},
    "whole.tiff": plain(lambda: Image.fromarray(noise(most=65536).astype(np.int32))),
    "real.tiff": plain(lambda: Image.fromarray((noise() / 255).astype(np.float32))),
    "rgb.tiff": plain(rgb),
    "rgb.bmp": plain(rgb),
    "small.png": plain(lambda: of(noise(3, height=17, width=23))),
    "tall.png": plain(lambda: of(noise(4, height=64, width=32))),
    "cut.jpg": halved(plain(ramp, quality=90)),
    "cut.png": halved(plain(rgb)),
    "cut.gif": halved(animated),
    "text.png": lambda path: path.write_text("not an image") and None,
    "empty.png": lambda path: path.write_bytes(b"") and None,
}
"""File name to what writes it."""


def make(folder: Path) -> None:
    """All of them, and one in a subfolder."""
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for name, write in MAKERS.items():
        write(folder / name)
    of(noise(4)).save(folder / "sub" / "in.png")
