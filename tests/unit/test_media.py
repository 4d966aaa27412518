"""Files that play: what is in them is read back with libav, and nothing half-written ever stays."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import av
import platforms
import pytest
import torch
from PIL import Image
from reading import decoded, tags_in
from sana_nodes.media import writer
from sana_nodes.media.formats import VIDEO_FORMATS
from sana_nodes.media.pictures import cover
from sana_nodes.media.pixels import to_bytes

GRAPH = {
    "workflow": {"nodes": [{"id": 1, "title": 'a "quoted"; #odd = \\title\n日本'}], "last_node_id": 1},
    "prompt": {"1": {"class_type": "SanaSaveVideo", "inputs": {"fps": 16.0}}},
}


def frames(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """A bar that moves over a smooth ground: [count, height, width, 3]."""
    ground = torch.linspace(0, 1, width).expand(count, height, width).unsqueeze(-1).repeat(1, 1, 1, 3)
    for i in range(count):
        ground[i, :, (i * 3) % width : (i * 3) % width + 4] = torch.tensor([1.0, 0.2, 0.1])
    return ground


CODECS = {"mp4-h264": "h264", "webm-vp9": "vp9", "mkv-ffv1": "ffv1", "gif": "gif"}
CLOSE = {"mp4-h264": 0.06, "webm-vp9": 0.06, "mkv-ffv1": 0.0, "gif": 0.1, "webp": 0.1}


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
def test_formats(tmp_path, format):
    video = frames(12)
    path = tmp_path / f"clip{VIDEO_FORMATS[format].suffix}"
    writer.write_video(path, [video[:5], video[5:]], 12.0, format, tags=GRAPH)
    assert list(tmp_path.iterdir()) == [path]
    if format == "webp":
        with Image.open(path) as picture:
            assert picture.is_animated and picture.n_frames == 12 and picture.size == (48, 32)
            picture.load()
            assert picture.info["duration"] in (83, 84)
            shown = []
            for i in range(12):
                picture.seek(i)
                shown.append(torch.tensor(list(picture.convert("RGB").getdata())).view(32, 48, 3) / 255)
            shown = torch.stack(shown)
    else:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            assert stream.codec_context.name.removeprefix("lib").startswith(CODECS[format])
            assert (stream.width, stream.height) == (48, 32)
            assert abs(float(stream.average_rate) - 12) < (0.6 if format == "gif" else 0.01)
        shown = decoded(path)
    assert shown.shape == video.shape
    error = (shown - video.mul(255).round().div(255)).abs()
    assert error.mean() <= CLOSE[format]
    assert tags_in(path) == GRAPH


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
def test_no_tags_where_none_are_given(tmp_path, format):
    path = writer.write_video(tmp_path / f"clip{VIDEO_FORMATS[format].suffix}", [frames(3)], 8.0, format)
    assert b"workflow" not in path.read_bytes() and tags_in(path) == {}


def test_a_large_graph_fits(tmp_path):
    graph = {"workflow": {"nodes": ["x" * 100] * 4000}, "prompt": {}}
    path = writer.write_video(tmp_path / "clip.mp4", [frames(2)], 8.0, tags=graph)
    assert tags_in(path) == graph


@pytest.mark.parametrize("format,size", [("mp4-h264", (34, 50)), ("webm-vp9", (34, 50)), ("mkv-ffv1", (33, 49))])
def test_odd_sizes(tmp_path, format, size):
    video = frames(3, 33, 49)
    path = writer.write_video(tmp_path / f"clip{VIDEO_FORMATS[format].suffix}", [video], 8.0, format)
    shown = decoded(path)
    assert shown.shape[1:3] == size
    assert (shown[:, :33, :49] - video).abs().mean() < 0.05
    assert (shown[:, -1] - shown[:, -2]).abs().max() < 0.2


def test_bytes_are_rounded():
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 127.5 / 255 + 1e-4, 254.6 / 255, 1.0, -1.0, 2.0])
    frame = values.view(1, -1, 1).expand(-1, -1, 3)
    assert to_bytes(frame)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255, 0, 255]


def test_quality_makes_a_difference(tmp_path):
    noisy = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    for format in ("mp4-h264", "webm-vp9", "webp"):
        suffix = VIDEO_FORMATS[format].suffix
        low = writer.write_video(tmp_path / f"low{suffix}", [noisy], 8.0, format, 10)
        high = writer.write_video(tmp_path / f"high{suffix}", [noisy], 8.0, format, 95)
        assert high.stat().st_size > 1.5 * low.stat().st_size


@pytest.mark.parametrize("format", ["mp4-h264", "webm-vp9", "mkv-ffv1"])
def test_sound_is_cut_at_the_end(tmp_path, format):
    seconds = torch.arange(48000 * 3) / 48000
    audio = {"waveform": torch.sin(seconds * 2765).expand(2, -1)[None] * 0.5, "sample_rate": 48000}
    path = tmp_path / f"clip{VIDEO_FORMATS[format].suffix}"
    writer.write_video(path, [frames(16)], 16.0, format, tags=GRAPH, audio=audio)
    with av.open(str(path)) as file:
        assert len(file.streams.audio) == 1
        heard = sum(f.samples for f in file.decode(audio=0)) / file.streams.audio[0].rate
    assert 0.9 < heard < 1.3
    assert len(decoded(path)) == 16 and tags_in(path) == GRAPH


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 8, "format": "avi"}, "mp4-h264"),
        ({"fps": 8, "quality": 0}, "quality is 0"),
        ({"fps": 8, "format": "gif", "audio": {}}, "no sound"),
    ],
)
def test_settings_that_make_no_video(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        writer.write_video(tmp_path / "clip.mp4", [frames(1)], **settings)
    assert not list(tmp_path.iterdir())


def test_no_frames(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        writer.write_video(tmp_path / "clip.mp4", [], 8.0)


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted():
        for _ in range(500):
            yield frames(4)
            if list(tmp_path.iterdir()):
                raise KeyboardInterrupt
            time.sleep(0.01)
        raise AssertionError("the file was never begun")

    with pytest.raises(KeyboardInterrupt):
        writer.write_video(tmp_path / "clip.mkv", interrupted(), 8.0, "mkv-ffv1")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(writer.CannotWrite, match="choose another output folder"):
        writer.write_video(tmp_path / "file" / "clip.mp4", [frames(1)], 8.0)


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from sana_nodes.media import writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    if sys.argv[2] == "video":
        writer.write_video(Path(sys.argv[1]) / "clip.mkv", [torch.rand(20, 64, 64, 3)], 8.0, "mkv-ffv1")
    else:
        writer.write_frame(Path(sys.argv[1]) / "frame.png", torch.rand(200, 200, 3))
except writer.CannotWrite as error:
    print("said:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
@pytest.mark.parametrize("what", ["video", "frame"])
def test_a_full_disk_leaves_nothing(tmp_path, what):
    """A limit on a file's size stands in for a full disk: writing beyond it fails in the same calls."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "said: cannot write" in done.stdout and "space" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_frames_as_pictures(tmp_path, suffix):
    path = writer.write_frame(tmp_path / f"frame{suffix}", frames(1)[0], GRAPH)
    with Image.open(path) as picture:
        assert picture.size == (48, 32)
        if suffix == ".png":
            found = {name: json.loads(picture.text[name]) for name in GRAPH}
        else:
            texts = [str(value) for value in picture.getexif().values()]
            found = {name: json.loads(text) for name, text in (t.split(":", 1) for t in texts)}
    assert found == GRAPH


def test_cover():
    image = torch.rand(40, 80, 4)
    assert cover(image, 80, 40).equal(image[..., :3])
    assert cover(image[..., :1], 32, 32).shape == (32, 32, 3)
    wide = torch.zeros(40, 120, 3)
    wide[:, 40:80] = 1.0
    assert (cover(wide, 40, 40) > 0.99).all(), "the middle is kept"
    with pytest.raises(ValueError, match="channels"):
        cover(torch.rand(8, 8, 2), 8, 8)


PEAK = """
import sys, torch
sys.path.insert(0, sys.argv[3])
import platforms
from pathlib import Path
from sana_nodes.media import writer
import av, numpy
video = torch.rand(int(sys.argv[2]), 240, 416, 3)
before = platforms.peak_memory()
writer.write_video(Path(sys.argv[1]) / "clip.mkv", [video], 16.0, "mkv-ffv1")
print((platforms.peak_memory() - before) / (1 << 20))
"""


def test_saving_takes_the_memory_of_a_frame(tmp_path):
    """Beyond the input's own bytes at most 64 MiB, for 120 frames of 416 x 240 (144 MB of them)."""
    command = [sys.executable, "-c", PEAK, str(tmp_path), "120", str(Path(platforms.__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64
