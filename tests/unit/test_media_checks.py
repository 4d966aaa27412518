"""What is wrong is told early and with its own reason: prefixes, folders, disks, encoders, files read back."""

from __future__ import annotations

import errno
import inspect
import io
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import av
import drawing
import graphs
import pytest
import torch
from clips import SOUNDING, moving_bar, tone
from PIL import Image
from sana_nodes import NODE_CLASS_MAPPINGS
from sana_nodes import host as hosts
from sana_nodes.host.embedded import core_nodes
from sana_nodes.host.embedded import graph as executor
from sana_nodes.media import encoder, prefixes, verify, writer
from sana_nodes.media.claims import CannotWrite
from sana_nodes.media.formats import FRAME_FORMATS, VIDEO_FORMATS

SAVERS = ("SanaSaveVideo", "SanaDecodeSaveVideo", "SanaSaveFrames")


@pytest.fixture
def embedded(tmp_path):
    here = hosts.use("embedded")
    here.folders.output, here.folders.temp = tmp_path / "output", tmp_path / "temp"
    yield here
    hosts._current = None


def write(folder, format, frames=None, **given):
    """One file of a video or still format in a folder."""
    frames = moving_bar(8) if frames is None else frames
    if format in VIDEO_FORMATS:
        return writer.write_video(folder / f"a{VIDEO_FORMATS[format].suffix}", [frames], 8.0, format, **given)
    return writer.write_frame(folder / f"a.{format}", frames[0])


ALL = [*VIDEO_FORMATS, *(f for f in FRAME_FORMATS if f not in VIDEO_FORMATS)]


# read back -----------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])


DAMAGE = {"cut short": cut, "empty": lambda file: file.write_bytes(b""), "zeros": lambda f: f.write_bytes(bytes(5000))}


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_not_whole_gets_no_name(tmp_path, monkeypatch, format, damage):
    """The disk loses bytes after the encoder has written them."""
    name = "check_video" if format in VIDEO_FORMATS else "check_image"
    real = getattr(verify, name)

    def check(path, *given):
        damage(path)
        real(path, *given)

    monkeypatch.setattr(verify, name, check)
    with pytest.raises(CannotWrite, match="cannot write .*; nothing is saved"):
        write(tmp_path, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
@pytest.mark.parametrize("damage", list(DAMAGE.values())[:2], ids=list(DAMAGE)[:2])
def test_a_file_that_libav_leaves_cut_short_gets_no_name(tmp_path, monkeypatch, format, damage):
    real = encoder.Encoder.__exit__

    def leave(self, *error):
        real(self, *error)
        damage(next(tmp_path.iterdir()))

    monkeypatch.setattr(encoder.Encoder, "__exit__", leave)
    with pytest.raises(CannotWrite, match="cannot write .*; nothing is saved"):
        write(tmp_path, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", [format for format in VIDEO_FORMATS if format != "webp"])
def test_a_lost_frame_is_found(tmp_path, monkeypatch, format):
    """The encoder is given one frame less than it counts. (A webp's frame before it is shown for longer.)"""
    real = encoder.Encoder.add

    def add(self, pixels):
        if self.count == 5:
            self.count += 1
        else:
            real(self, pixels)

    monkeypatch.setattr(encoder.Encoder, "add", add)
    with pytest.raises(CannotWrite, match="its frames read back as 8, and not 9"):
        write(tmp_path, format, moving_bar(9))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", list(VIDEO_FORMATS))
def test_a_wrong_size_is_found(tmp_path, monkeypatch, format):
    real = verify.check_video
    monkeypatch.setattr(verify, "check_video", lambda path, kind, size, *rest: real(path, kind, (50, 32), *rest))
    with pytest.raises(CannotWrite, match=r"its size read back as \(48, 32\), and not \(50, 32\)"):
        write(tmp_path, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", SOUNDING)
def test_lost_sound_is_found(tmp_path, monkeypatch, format):
    monkeypatch.setattr(encoder.Encoder, "_add_sound", lambda self, sound: None)
    with pytest.raises(CannotWrite, match="its sound read back as False, and not True"):
        write(tmp_path, format, audio=tone(1.0))
    assert not list(tmp_path.iterdir())


def test_a_short_webp_is_found(tmp_path, monkeypatch):
    real = verify.check_video
    monkeypatch.setattr(verify, "check_video", lambda p, k, s, n, time, sound: real(p, k, s, n, time + 125, sound))
    with pytest.raises(CannotWrite, match="milliseconds read back as 1000, and not 1125"):
        write(tmp_path, "webp")
    monkeypatch.setattr(verify, "check_video", lambda p, k, s, n, time, sound: real(p, k, s, 3, time, sound))
    with pytest.raises(CannotWrite, match="frames read back as 8, and not 3"):
        write(tmp_path, "webp")
    assert not list(tmp_path.iterdir())


def test_an_image_of_another_size_is_found(tmp_path, embedded, monkeypatch):
    real = verify.check_image
    monkeypatch.setattr(verify, "check_image", lambda path, size: real(path, (size[0] + 1, size[1])))
    with pytest.raises(CannotWrite, match=r"its size read back as \(48, 32\)"):
        write(tmp_path, "png")
    with pytest.raises(CannotWrite, match=r"its size read back as \(48, 32\)"):
        core_nodes.SaveImage().save(moving_bar(2), embedded.folders, {})
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


# reasons -------------------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from pathlib import Path
from clips import moving_bar, torch
from sana_nodes.media import writer
from sana_nodes.media.formats import VIDEO_FORMATS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
noise = torch.rand(20, 64, 64, 3)
for format in (*VIDEO_FORMATS, "png", "jpg"):
    path = Path(sys.argv[1]) / f"a.{format}"
    try:
        if format in VIDEO_FORMATS:
            writer.write_video(path, [noise], 8.0, format)
        else:
            writer.write_frame(path, noise[0])
    except writer.CannotWrite as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
def test_a_disk_that_takes_no_more_says_so_for_every_format(tmp_path):
    """A limit on a file's size stands in for the disk: the write itself fails, in libav and in Python."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    told = done.stdout.splitlines()
    assert len(told) == len(ALL), done.stderr
    assert all("cannot write" in line and "the file system takes no larger file" in line for line in told)
    assert not list(tmp_path.iterdir()) and "Traceback" not in done.stderr


REASONS = [
    (errno.ENOSPC, "no space is left on the disk"),
    (errno.EDQUOT, "no space is left on the disk"),
    (errno.EFBIG, "takes no larger file"),
    (errno.EACCES, "permission denied"),
    (errno.EROFS, "read-only"),
    (errno.EIO, "Input/output error"),
    (errno.ENOMEM, "not enough memory"),
]


@pytest.mark.parametrize("number,reason", REASONS, ids=[errno.errorcode[number] for number, _ in REASONS])
@pytest.mark.parametrize("format", ["mp4-h264", "webp", "png"])
def test_every_error_has_its_own_reason(tmp_path, monkeypatch, format, number, reason):
    """libav's errors, which carry the system's number, and Python's."""

    def fails(*_, **__):
        raise (
            av.error.OSError(number, os.strerror(number), "a.part")
            if format in VIDEO_FORMATS
            else OSError(number, os.strerror(number))
        )

    monkeypatch.setattr(*((encoder.Encoder, "_drain") if format in VIDEO_FORMATS else (Path, "write_bytes")), fails)
    with pytest.raises(CannotWrite) as told:
        write(tmp_path, format)
    assert reason in str(told.value) and str(tmp_path) in str(told.value)
    assert ("space" in str(told.value)) == (number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_the_error_of_a_failed_write_holds_no_view_of_the_encoded_image(tmp_path, monkeypatch, format):
    """Python 3.12.0 and 3.12.1 crash when the garbage collector frees one (python/cpython issue 111049)."""

    def fails(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(CannotWrite) as told:
        writer.write_frame(tmp_path / f"a.{format}", moving_bar(1)[0])
    frames = [frame for frame, _ in traceback.walk_tb(told.value.__cause__.__traceback__)]
    buffers = [value for frame in frames for value in frame.f_locals.values() if isinstance(value, io.BytesIO)]
    assert buffers
    for buffer in buffers:
        buffer.close()  # BufferError where a view of it is left


@pytest.mark.parametrize("format,option", [("mp4-h264", "preset"), ("webm-vp9", "deadline"), ("mkv-ffv1", "level")])
def test_an_option_that_the_encoder_refuses(tmp_path, monkeypatch, format, option):
    row = VIDEO_FORMATS[format]
    changed = type(row)(**{**vars(row), "options": lambda quality: {**row.options(quality), option: "none such"}})
    monkeypatch.setitem(VIDEO_FORMATS, format, changed)
    with pytest.raises(CannotWrite, match=f"{row.encoder} failed: .*"):
        write(tmp_path, format)
    assert not list(tmp_path.iterdir())


def test_a_size_that_an_encoder_refuses(tmp_path):
    with pytest.raises(CannotWrite, match="libwebp_anim failed"):
        writer.write_video(tmp_path / "a.webp", [torch.zeros(1, 2, 16400, 3)], 8.0, "webp")
    with pytest.raises(CannotWrite, match="16383"):
        writer.write_frame(tmp_path / "a.webp", torch.zeros(2, 16400, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), KeyError("x"), MemoryError()])
def test_an_error_of_who_makes_the_frames_stays_as_it_is(tmp_path, error):
    """A progress bar's closed pipe, say, is not an error of the file."""

    def frames():
        yield moving_bar(1)
        raise error

    with pytest.raises(type(error)) as told:
        writer.write_video(tmp_path / "a.mp4", frames(), 8.0)
    assert told.value is error and not list(tmp_path.iterdir())


# prefixes and folders ------------------------------------------------------------------------------------------

WRONG = [
    ("", "give a name"),
    ("  ", "give a name"),
    (".", "is not a name"),
    ("a/..", "is not a name"),
    ("..", "leads out"),
    ("../a", "leads out"),
    ("a/../../b", "leads out"),
    ("/abs/a", "absolute"),
    ("a\0b", "no file name can hold"),
    *([] if os.name == "nt" else [("a\ud800b", "surrogate")]),  # Windows' names hold it
    ("n" * 244, "and the output folder takes names of 255"),
    ("日" * 82, "has 246 bytes"),
    ("f" * 256 + "/a", "takes names of 255"),
    ("/".join(["f" * 250] * 17), "bytes"),
]


@pytest.mark.parametrize("prefix,message", WRONG, ids=[ascii(prefix)[:20] for prefix, _ in WRONG])
def test_prefixes_that_name_no_file(tmp_path, embedded, prefix, message):
    """One message, from each saving node and from SaveImage, and nothing is made on the disk."""
    for name in SAVERS:
        assert message in NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS(filename_prefix=prefix)
    assert message in core_nodes.SaveImage.VALIDATE_INPUTS(filename_prefix=prefix)
    with pytest.raises(ValueError, match="filename_prefix"):
        core_nodes.SaveImage().save(moving_bar(1), embedded.folders, {}, prefix)
    with pytest.raises(ValueError, match="filename_prefix"):
        drawing.call("SanaSaveVideo", images=moving_bar(1), filename_prefix=prefix)
    assert not list(tmp_path.iterdir())


RIGHT = ["a", "video/a", "a/../b", "a/", "./a", "n" * 240, "日" * 80, "f" * 255 + "/" + "n" * 240, "..a", "a b.c", "é"]


@pytest.mark.parametrize("prefix", RIGHT, ids=[ascii(prefix)[:20] for prefix in RIGHT])
def test_prefixes_that_do(tmp_path, embedded, prefix):
    """240 bytes too: the hidden part file is not longer than a name may be. Each is checked and then saved."""
    for name in SAVERS:
        assert NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS(filename_prefix=prefix) is True
    assert core_nodes.SaveImage.VALIDATE_INPUTS(filename_prefix=prefix, folders=embedded.folders) is True
    assert not list(tmp_path.iterdir()), "a check makes no folder"
    saved = core_nodes.SaveImage().save(moving_bar(1), embedded.folders, {}, prefix)["ui"]["images"]
    for format in VIDEO_FORMATS:
        saved.append(
            drawing.call("SanaSaveVideo", images=moving_bar(2), format=format, filename_prefix=prefix)["result"][1]
        )
    saved += drawing.call("SanaSaveFrames", images=moving_bar(2), format="webp", filename_prefix=prefix)["ui"]["images"]
    folder = tmp_path / "output" / Path(os.path.normpath(prefix)).parent
    assert sorted(map(Path, saved)) == sorted(file for file in folder.iterdir())


def test_a_shorter_limit_of_the_file_system(tmp_path, monkeypatch):
    """An encrypted home folder takes names of 143 bytes."""
    monkeypatch.setattr(os, "pathconf", lambda folder, name: 143 if name == "PC_NAME_MAX" else 4096, raising=False)
    with pytest.raises(ValueError, match="takes names of 143"):
        prefixes.check_prefix("n" * 132, tmp_path)
    prefixes.check_prefix("n" * 131, tmp_path)


def test_letters_that_windows_forbids(tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "FORBIDDEN", '\0<>:"|?*')
    with pytest.raises(ValueError, match="no file name can hold ':', '[?]'"):
        prefixes.check_prefix("a?b:c", tmp_path)


def test_what_stands_in_a_prefix_is_filled_in_as_in_comfyui(embedded, tmp_path):
    import time

    prefix = "%year%-%month%/%width%x%height%_%day%%hour%%minute%%second%_%other%"
    before = time.localtime()
    (path,) = core_nodes.SaveImage().save(moving_bar(1), embedded.folders, {}, prefix)["ui"]["images"]
    path = Path(path).relative_to(tmp_path / "output")
    assert path.parent.name == f"{before.tm_year}-{before.tm_mon:02}"
    assert path.name.startswith(f"48x32_{before.tm_mday:02}") and path.name.endswith("_%other%_00001_.png")
    assert len(path.name) == len("48x32_ddhhmmss_%other%_00001_.png")


def test_the_number_in_the_batch_stands_in_a_name(embedded):
    for numbers in ([1, 2, 3], [4, 5, 6]):
        saved = core_nodes.SaveImage().save(moving_bar(3), embedded.folders, {}, "b%batch_num%")["ui"]["images"]
        names = [Path(path).name for path in saved]
        assert [name.split("_")[0] for name in names] == ["b0", "b1", "b2"]
        if numbers[0] == 1:
            assert names == ["b0_00001_.png", "b1_00002_.png", "b2_00003_.png"]
        assert all(Path(path).is_file() for path in saved)
    assert len(list((embedded.folders.output).iterdir())) == 6, "none was replaced"


def test_an_output_that_is_a_file(tmp_path, embedded):
    (tmp_path / "output").write_text("a file")
    for name in SAVERS:
        message = NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS(filename_prefix="a/b")
        assert "output is not a folder; choose another output folder" in message
    message = core_nodes.SaveImage.VALIDATE_INPUTS(filename_prefix="a", folders=embedded.folders)
    assert "is not a folder" in message
    with pytest.raises(CannotWrite, match="is not a folder"):
        drawing.call("SanaSaveVideo", images=moving_bar(1))
    (tmp_path / "temp").write_text("a file")
    assert "temp is not a folder" in core_nodes.PreviewImage.VALIDATE_INPUTS(folders=embedded.folders)


@pytest.fixture
def forbidden():
    """A folder that this process may not write: not its own, where the process is root's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name == "nt", reason="access lists")
@pytest.mark.parametrize("below", ["", "new/folder"])
def test_a_folder_that_may_not_be_written(embedded, forbidden, below):
    embedded.folders.output = forbidden / below
    for name in SAVERS:
        assert "no permission for" in NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS(filename_prefix="video/a")
    with pytest.raises(CannotWrite, match="no permission for"):
        drawing.call("SanaSaveFrames", images=moving_bar(1))


def test_a_full_disk_is_told_before_anything_runs(embedded, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert "no space is left" in NODE_CLASS_MAPPINGS["SanaSaveVideo"].VALIDATE_INPUTS(filename_prefix="a")


def test_pyav_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CannotWrite, match="needs PyAV.*pip install av"):
        writer.write_video(tmp_path / "new" / "a.mp4", [moving_bar(1)], 8.0)
    assert not list(tmp_path.iterdir())
    writer.write_frame(tmp_path / "a.png", moving_bar(1)[0])


ONE_WRONG_INPUT = [
    ({"fps": 0.0}, "fps is 0.0"),
    ({"fps": float("nan")}, "fps is nan"),
    ({"quality": 101}, "quality is 101"),
    ({"format": None}, "format is None"),
    ({"format": "avi"}, "format is 'avi'"),
    ({"filename_prefix": ""}, "filename_prefix is ''"),
]


@pytest.mark.parametrize("change,message", ONE_WRONG_INPUT, ids=str)
def test_one_wrong_input_is_one_message_before_any_model_loads(home, video_references, embedded, change, message):
    embedded.folders.models = [home / "models"]
    graph, started = graphs.video(**change), []
    with pytest.raises(executor.BadWorkflow) as told:
        executor.run(graph, NODE_CLASS_MAPPINGS, embedded.folders, lambda *node: started.append(node))
    assert str(told.value).count(message) == 1 and not started
    assert not embedded.folders.output.exists()


def test_comfyui_reads_at_most_one_name_of_a_saving_node():
    """It repeats the message for every name in VALIDATE_INPUTS (execution.validate_inputs)."""
    for name in SAVERS:
        check = NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS
        assert list(inspect.signature(check).parameters) in ([], ["filename_prefix"])
        assert check() is True and check(filename_prefix=None) is True, "what another node gives is checked later"


def test_preview_image_says_where(embedded, tmp_path):
    saved = core_nodes.PreviewImage().save(moving_bar(2), embedded.folders, {"1": {}})
    assert len(saved["ui"]["previews"]) == 2
    for path in saved["ui"]["previews"]:
        with Image.open(path) as image:
            assert image.size == (48, 32) and Path(path).parent == tmp_path / "temp"


def test_save_image_gives_its_images_on_and_cuts_to_bytes(embedded):
    """As ComfyUI's: 0.999 is 254, alpha is kept, and the graph is in a text chunk."""
    images = torch.tensor([0.0, 0.999, 1.5, 0.5]).view(1, 1, 1, 4).repeat(1, 4, 4, 1)
    saved = core_nodes.SaveImage().save(images, embedded.folders, {"1": {}}, "x")
    assert saved["result"][0] is images
    with Image.open(saved["ui"]["images"][0]) as image:
        assert image.mode == "RGBA" and image.getpixel((0, 0)) == (0, 254, 255, 127)
        assert image.text == {"prompt": '{"1": {}}'}
