"""What each format holds: channels, colour, time stamps, few or equal frames, and tags that are too long."""

from __future__ import annotations

import json
import logging

import av
import pytest
import torch
from clips import moving_bar
from PIL import Image
from reading import decoded, tags_in
from sana_nodes.media import formats, tags, webp, writer
from sana_nodes.media.formats import FRAME_FORMATS, VIDEO_FORMATS

SUFFIXES = {name: row.suffix for name, row in VIDEO_FORMATS.items()}
GRAPH = {"workflow": {"nodes": []}, "prompt": {"1": {"class_type": "SanaSaveVideo", "inputs": {}}}}


def saved(tmp_path, format, frames, fps=12.0, name="clip", **given):
    return writer.write_video(tmp_path / f"{name}{SUFFIXES[format]}", [frames], fps, format, **given)


def shown(path) -> torch.Tensor:
    """The frames of a file, libwebp's too."""
    if path.suffix != ".webp":
        return decoded(path)
    with Image.open(path) as image:
        found = []
        for i in range(image.n_frames):
            image.seek(i)
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            found.append(pixels.view(*image.size[::-1], 3) / 255)
    return torch.stack(found)


@pytest.mark.parametrize("format", ["mp4-h264", "webm-vp9"])
def test_colour_is_bt709_in_the_codec_and_in_the_container(tmp_path, format):
    path = saved(tmp_path, format, moving_bar(4), tags=GRAPH)
    with av.open(str(path)) as file:
        context = file.streams.video[0].codec_context
        found = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
    assert found == (1, 1, 1, 1), "bt709 three times, and tv"
    data = path.read_bytes()
    if format == "mp4-h264":
        (box,) = data.split(b"colrnclx")[1:]
        assert box[:7] == bytes([0, 1, 0, 1, 0, 1, 0])
        assert vui(path, tmp_path / "stream.h264") == (1, 1, 1, 1)
    else:
        for element in (b"\x55\xb1", b"\x55\xb9", b"\x55\xba", b"\x55\xbb"):
            assert element + b"\x81\x01" in data, "Matroska's matrix, range, transfer and primaries"


def vui(path, stream) -> tuple:
    """What H.264's own headers say, without the container."""
    with av.open(str(path)) as source, av.open(str(stream), "w", format="h264") as target:
        copied = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    with av.open(str(stream), format="h264") as file:
        context = next(file.decode(video=0)) and file.streams.video[0].codec_context
        return context.color_primaries, context.color_trc, context.colorspace, context.color_range


@pytest.mark.parametrize("format", ["mp4-h264", "webm-vp9"])
def test_the_pixels_are_bt709_too(tmp_path, format):
    """Pure colours, whose luma bt601 puts elsewhere: green is 173 of 255 in bt709 and 145 in bt601."""
    for colour, luma in (((1.0, 0, 0), 63), ((0, 1.0, 0), 173), ((0, 0, 1.0), 32)):
        frames = torch.tensor(colour).expand(3, 32, 32, 3)
        path = saved(tmp_path, format, frames, name=f"clip{luma}", quality=95)
        with av.open(str(path)) as file:
            plane = next(file.decode(video=0)).to_ndarray(format="yuv420p")[:32]
        assert abs(float(plane.mean()) - luma) < 2


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_videos_of_other_channels(tmp_path, caplog, format, channels):
    """Grey becomes RGB; alpha is left out, which is said once."""
    frames = moving_bar(6, channels=channels)
    opaque = frames[..., :3] if channels > 2 else frames[..., :1].expand(-1, -1, -1, 3)
    found = shown(saved(tmp_path, format, frames, name="given"))
    assert len([r for r in caplog.records if "alpha" in r.message]) == (channels != 1)
    expected = shown(saved(tmp_path, format, opaque, name="opaque"))
    assert found.shape == expected.shape == (6, 32, 48, 3)
    assert (found - expected).abs().mean() < 0.004, "an encoder's conversion of pixels is not the same to the bit"
    assert len([r for r in caplog.records if "alpha" in r.message]) == (channels != 1)


@pytest.mark.parametrize("format", list(FRAME_FORMATS))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_other_channels(tmp_path, caplog, format, channels):
    """png and webp keep alpha, as ComfyUI's Save Image does; jpg leaves it out, which is said once for a batch."""
    frames = moving_bar(2, channels=channels)
    names = [tmp_path / f"{i}.{format}" for i in range(2)]
    assert list(writer.write_frames(names.__getitem__, frames, format)) == names
    colour = frames[1, ..., :3] if channels > 2 else frames[1, ..., :1].expand(-1, -1, 3)
    with Image.open(names[1]) as image:
        keeps = format != "jpg" and channels in (2, 4)
        assert image.mode == ("RGBA" if keeps else "RGB") and image.size == (48, 32)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 48, -1) / 255
    if keeps:
        assert (pixels[..., 3] - frames[1, ..., -1]).abs().max() < 0.003
    assert (pixels[..., :3] - colour).abs().mean() < (0.002 if format == "png" else 0.05)
    assert len([r for r in caplog.records if "alpha" in r.message]) == (format == "jpg" and channels in (2, 4))


@pytest.mark.parametrize("shape", [(2, 8, 8, 5), (2, 8, 8, 0), (2, 8, 8), (8, 8), (2, 0, 8, 3), (0, 8, 8, 3)])
def test_what_is_not_frames(tmp_path, shape):
    with pytest.raises(ValueError, match="channels|shape|no frames"):
        writer.write_video(tmp_path / "a.mp4", [torch.zeros(shape)], 8.0)
    with pytest.raises(ValueError, match="channels|shape|no frames"):
        writer.write_frames(tmp_path / "a.png", torch.zeros(shape))
    assert not list(tmp_path.iterdir())


EQUAL = {"one": (1, []), "two": (2, []), "all equal": (12, []), "the last differs": (12, [11]), "some": (12, [4, 8])}


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
@pytest.mark.parametrize("count,changes", EQUAL.values(), ids=EQUAL)
def test_few_and_equal_frames(tmp_path, format, count, changes):
    """Each file lasts count / fps seconds, whether its encoder joins equal frames or not; tags are in it."""
    frames = torch.full((count, 32, 48, 3), 0.2)
    for change in changes:
        frames[change:, :, :24] += 0.3
    path = saved(tmp_path, format, frames, tags=GRAPH)
    assert tags_in(path) == GRAPH
    if format == "webp":
        found = webp.read(path)
        assert (found.width, found.height, found.milliseconds) == (48, 32, round(count / 12 * 1000))
        assert 1 + len(changes) <= found.frames <= count
        found = shown(path)
    else:
        found = shown(path)
        assert len(found) == count
    assert (found[0] - frames[0]).abs().mean() < 0.02 and (found[-1] - frames[-1]).abs().mean() < 0.02


def test_webp_frames_last_as_long_as_they_should(tmp_path):
    """libwebp guesses the last frame's length from the others: eleven equal frames and one."""
    frames = torch.zeros(12, 32, 48, 3)
    frames[11] = 1.0
    with Image.open(saved(tmp_path, "webp", frames, fps=10.0)) as image:
        lengths = []
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            lengths.append(image.info["duration"])
    assert lengths == [1100, 100]


@pytest.mark.parametrize("fps", [7.0, 12.0, 16.0, 23.976, 24.0, 30.0, 45.0, 50.0])
def test_gif_keeps_the_average_rate(tmp_path, fps):
    path = saved(tmp_path, "gif", moving_bar(40), fps=fps)
    with Image.open(path) as image:
        delays = []
        for i in range(image.n_frames):
            image.seek(i)
            delays.append(image.info["duration"])
    assert len(delays) == 40 and min(delays) >= 20, "browsers show 1/100 s and less as 1/10 s"
    assert abs(sum(delays) - 40_000 / fps) <= 10


@pytest.mark.parametrize("format,fps,slow", [("gif", 50, 0), ("gif", 60, 1), ("gif", 240, 1), ("gif", 1000, 1)])
def test_gif_faster_than_players_show_is_said_once(tmp_path, caplog, format, fps, slow):
    path = saved(tmp_path, format, moving_bar(30), fps=float(fps))
    assert len([r for r in caplog.records if "plays slowly" in r.message]) == slow
    assert len(shown(path)) == 30, "every frame is there all the same"


@pytest.mark.parametrize("fps", [0.01, 0.5, 23.976, 29.97, 59.94, 120.0, 1000.0])
@pytest.mark.parametrize("format", ["mp4-h264", "webm-vp9", "mkv-ffv1", "webp"])
def test_any_rate(tmp_path, format, fps):
    path = saved(tmp_path, format, moving_bar(5), fps=fps)
    if format == "webp":
        assert webp.read(path).milliseconds == round(5000 / fps)
        return
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stamps = [float(p.pts * p.time_base) for p in file.demux(stream) if p.size]
        assert len(stamps) == 5 and max(stamps) == pytest.approx(4 / fps, abs=2e-3)


def test_a_file_that_holds_nothing_else_is_left_as_it_is(tmp_path):
    """Tags go into libav's finished webp and gif, whose image data stays."""
    for format in ("gif", "webp"):
        plain, tagged = (saved(tmp_path, format, moving_bar(6), name=n, tags=t) for n, t in (("a", None), ("b", GRAPH)))
        assert (shown(plain) - shown(tagged)).abs().mean() < 0.004 and tags_in(plain) == {}


LONG = {"workflow": {"nodes": ["n" * 100] * 500}, "prompt": {"1": {"inputs": {"text": "p" * 70_000}}}}
LONGER = {"workflow": {"nodes": ["n" * 100] * 900}, "prompt": {"1": {"inputs": {"text": "p" * 70_000}}}}


@pytest.mark.parametrize("format", list(FRAME_FORMATS))
@pytest.mark.parametrize("graph,kept", [(LONG, {"workflow"}), (LONGER, set())], ids=["over 64 KB", "each over 64 KB"])
def test_images_with_a_long_workflow(tmp_path, caplog, format, graph, kept):
    """They are all saved; jpg, whose EXIF block holds 64 KB, without what it has no room for, which is said once."""
    names = [tmp_path / f"{i}.{format}" for i in range(3)]
    list(writer.write_frames(names.__getitem__, moving_bar(3), format, graph))
    for path in names:
        with Image.open(path) as image:
            image.load()
            texts = image.text.items() if format == "png" else (str(v).split(":", 1) for v in image.getexif().values())
            found = {name: json.loads(text) for name, text in texts}
        assert found == ({name: graph[name] for name in kept} if format == "jpg" else graph)
    told = [r.getMessage() for r in caplog.records if "saved without" in r.getMessage()]
    assert len(told) == (format == "jpg") and all("prompt" in text for text in told)


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
def test_videos_with_a_long_workflow(tmp_path, format):
    graph = {"workflow": {"nodes": ["n" * 100] * 10_000}, "prompt": {"1": {"text": '"=;#\\\n日本'}}}
    assert tags_in(saved(tmp_path, format, moving_bar(2), tags=graph)) == graph


def test_a_jpg_holds_tags_up_to_its_limit(tmp_path):
    """Around the limit, byte by byte: what is kept, Pillow writes."""
    limit, kept = FRAME_FORMATS["jpg"].tag_limit, []
    for length in range(limit - 60, limit):
        graph = {"workflow": "n" * length}
        path = writer.write_frame(tmp_path / f"{length}.jpg", moving_bar(1)[0], graph)
        with Image.open(path) as image:
            kept.append(len(image.getexif()))
        assert kept[-1] == (len(tags.exif(tags.as_text(graph))) <= limit)
    assert kept == sorted(kept, reverse=True) and set(kept) == {0, 1}


@pytest.fixture
def without_x264(monkeypatch):
    """An installation whose libav has no libx264, as conda's LGPL builds."""
    real = formats.has_encoder
    for module in (formats, writer):
        monkeypatch.setattr(module, "has_encoder", lambda name: name != "libx264" and real(name))
    formats.available.cache_clear()
    yield
    formats.available.cache_clear()


def test_a_format_without_its_encoder_is_not_offered(without_x264, caplog, tmp_path):
    assert formats.available() == ("webm-vp9", "mkv-ffv1", "gif", "webp") == formats.available()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "mp4-h264 is not available: PyAV here has no libx264 encoder. pip install --upgrade av"
    ]
    with pytest.raises(writer.CannotWrite, match="needs the encoder libx264.*choose another format"):
        writer.write_video(tmp_path / "new" / "clip.mp4", [moving_bar(1)], 8.0)
    assert not list(tmp_path.iterdir())


def test_every_encoder_of_the_table_is_in_pyav():
    assert formats.available() == tuple(VIDEO_FORMATS)
    assert all(formats.has_encoder(row.sound.encoder) for row in VIDEO_FORMATS.values() if row.sound)
    assert not formats.has_encoder("no such encoder")
