"""File names: one run alone has each, a killed run leaves nothing to see, and no other file is replaced."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import savers
import torch
from clips import moving_bar
from PIL import Image
from reading import decoded
from sana_nodes.media import claims, writer
from sana_nodes.media.claims import CannotWrite, claimed, part_of
from sana_nodes.media.formats import VIDEO_FORMATS

SAVES = 32


def numbered(folder: Path, suffix: str = ".png"):
    return lambda number: folder / f"Sana_{number + 1:05}_{suffix}"


def parts(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name.endswith(claims.PART_SUFFIX)]


MIXED = "mkv-ffv1/frames-png"
KINDS = [*VIDEO_FORMATS, "SaveImage", "frames-png", "frames-jpg", "frames-webp", MIXED]


@pytest.fixture(scope="module")
def saved_together(tmp_path_factory):
    """Two processes' saves, round by round of KINDS: the folder of each, and [paths, colour] of each save."""
    folder = tmp_path_factory.mktemp("together")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    given = [[sys.executable, savers.__file__, str(folder), str(i), str(SAVES), *KINDS] for i in range(2)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in given]
    try:
        for process in running:
            assert not process.wait(300), process.stderr.read()
    finally:
        for process in running:
            process.kill()
            process.wait()
    found = [json.loads((folder / f"saved-{i}.json").read_text()) for i in range(2)]
    return {kind: (folder / "output" / str(i), found[0][i] + found[1][i]) for i, kind in enumerate(KINDS)}


def mean_colour(path: Path) -> torch.Tensor:
    """The mean colour [3] of a file's frames, whose number is checked."""
    if path.suffix in (".webp", ".png", ".jpg"):
        with Image.open(path) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            return pixels.view(-1, 3).float().mean(0) / 255
    found = decoded(path)
    assert len(found) == savers.FRAMES
    return found.flatten(0, 2).mean(0)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_one_prefix(saved_together, kind):
    """2 x 32 saves: every file whole, its own, and none replaced; a batch's images are numbered one after another."""
    folder, done = saved_together[kind]
    assert len(done) == 2 * SAVES
    for saved, colour in done:
        for path in saved:
            assert (mean_colour(Path(path)) - torch.tensor(colour)).abs().max() < savers.STEP / 2, path
        numbers = [int(path.split("_")[-2]) for path in saved]
        assert numbers == list(range(numbers[0], numbers[0] + len(saved)))
    paths = [path for saved, _ in done for path in saved]
    assert sorted(map(Path, paths)) == sorted(folder.iterdir()), "each once, and nothing else"
    videos = {MIXED: SAVES, **dict.fromkeys(VIDEO_FORMATS, 2 * SAVES)}.get(kind, 0)
    assert len(paths) == videos + savers.FRAMES * (2 * SAVES - videos)


@pytest.mark.parametrize("mine", [1, 3, 10])
def test_ranges_do_not_mix(tmp_path, mine):
    """Whatever the order of two batches, each has consecutive numbers."""
    with claimed(numbered(tmp_path), 5) as first, claimed(numbered(tmp_path), mine) as second:
        assert [c.number for c in first] == list(range(5))
        assert [c.number for c in second] == list(range(second[0].number, second[0].number + mine))
        assert second[0].number >= 5
        for claim in first + second:
            claim.part.write_text(claim.path.name)
            claim.publish()
    assert all(file.read_text() == file.name for file in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 5 + mine


def test_the_longer_of_two_batches_yields(tmp_path, monkeypatch):
    """The other run claims its three while this one, which began at ten, comes down to them."""
    real, others = claims._claim, []

    def claim(path):
        if not others and path.name.endswith("00006_.png"):
            others.append(None)
            others.extend(claims._claim_range(numbered(tmp_path), 3))
        return real(path)

    monkeypatch.setattr(claims, "_claim", claim)
    with claimed(numbered(tmp_path), 10) as mine:
        assert [c.number for c in others[1:]] == [0, 1, 2]
        assert [c.number for c in mine] == list(range(3, 13))
        assert len(parts(tmp_path)) == 13


def test_what_is_not_published_is_released(tmp_path):
    with pytest.raises(KeyboardInterrupt), claimed(numbered(tmp_path), 4) as mine:
        mine[0].publish()
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["Sana_00001_.png"]


def test_a_published_name_is_not_released_again(tmp_path):
    """A batch is still running when its first image is moved away and another run claims that name."""
    with claimed(numbered(tmp_path), 2) as mine:
        mine[0].publish().rename(tmp_path / "moved.png")
        with claimed(numbered(tmp_path)) as (theirs,):
            assert theirs.path.name == "Sana_00001_.png"
            mine[0].release()
            assert theirs.part.exists()
            theirs.publish()


def test_a_claim_that_fails_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    real = claims._claim

    def claim(path):
        if path.name.endswith("00002_.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(claims, "_claim", claim)
    with pytest.raises(OSError), claimed(numbered(tmp_path), 4):
        pass
    assert not list(tmp_path.iterdir())


LINKS = {"with hard links": None, "without": OSError(errno.EPERM, "Operation not permitted"), "none": AttributeError()}


@pytest.fixture(params=LINKS.values(), ids=LINKS)
def links(request, monkeypatch):
    """File systems with and without hard links."""
    if request.param is not None:

        def link(*_):
            raise request.param

        monkeypatch.setattr(os, "link", link)


def test_no_file_is_replaced(tmp_path, links):
    """Another program, which claims nothing, takes the name while the file is written: the next free one is taken."""
    with claimed(numbered(tmp_path), 2) as mine:
        for claim in mine:
            claim.part.write_text("mine")
        (tmp_path / "Sana_00001_.png").write_text("theirs")
        assert [claim.publish().name for claim in mine] == ["Sana_00003_.png", "Sana_00002_.png"]
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {"Sana_00001_.png": "theirs", "Sana_00002_.png": "mine", "Sana_00003_.png": "mine"}


def test_one_path_is_never_replaced(tmp_path, links):
    path = tmp_path / "clip.mkv"
    writer.write_video(path, [moving_bar(2)], 8.0, "mkv-ffv1")
    before = path.read_bytes()
    with pytest.raises(CannotWrite, match="exists already"):
        writer.write_video(path, [moving_bar(3)], 8.0, "mkv-ffv1")
    with claimed(tmp_path / "b.png"), pytest.raises(CannotWrite, match="another run is writing it"):
        writer.write_frame(tmp_path / "b.png", moving_bar(1)[0])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_empty_file(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(CannotWrite, match="Input/output error"):
        writer.write_frame(tmp_path / "a.png", moving_bar(1)[0])
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, time, torch
from pathlib import Path
from sana_nodes.media import writer

def frames():
    yield torch.rand(8, 64, 64, 3)
    print("begun", flush=True)
    time.sleep(60)
    yield torch.rand(8, 64, 64, 3)

folder = Path(sys.argv[1])
writer.write_video(lambda n: folder / f"Sana_{n + 1:05}_.mkv", frames(), 8.0, "mkv-ffv1")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_killed_run_leaves_nothing_that_looks_saved(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGKILL)
    assert [file.name for file in tmp_path.iterdir()] == [part_of(tmp_path / "Sana_00001_.mkv").name]
    names = numbered(tmp_path, ".mkv")
    assert writer.write_video(names, [moving_bar(2)], 8.0, "mkv-ffv1").name == "Sana_00002_.mkv"
    for part in parts(tmp_path):
        os.utime(part, (time.time() - claims.ABANDONED - 60,) * 2)
    assert writer.write_video(names, [moving_bar(2)], 8.0, "mkv-ffv1").name == "Sana_00001_.mkv"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["Sana_00001_.mkv", "Sana_00002_.mkv"]


def test_only_our_own_old_parts_are_swept(tmp_path):
    old, kept = time.time() - claims.ABANDONED - 60, [".clip.part.mp4", "Sana_00001_.png", f"x{claims.PART_SUFFIX}"]
    for name in (*kept, f".x-0{claims.PART_SUFFIX}"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / f".new-0{claims.PART_SUFFIX}").touch()
    claims.sweep(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([*kept, f".new-0{claims.PART_SUFFIX}"])


def test_a_long_run_is_not_swept(tmp_path):
    """A part file whose bytes all come at the end, as webp's, is touched with every frame."""

    def frames():
        yield moving_bar(1)
        (part,) = parts(tmp_path)
        os.utime(part, (1, 1))
        yield moving_bar(2)
        yield moving_bar(1)
        claims.sweep(tmp_path)
        assert part.exists()

    assert writer.write_video(tmp_path / "clip.webp", frames(), 8.0, "webp").exists()


def test_names_that_one_disk_takes_for_the_same_share_their_claim():
    assert part_of(Path("a/Clip.mp4")) == part_of(Path("a/Clip.mp4"))
    for same in ("clip_1.mp4", "é.mp4"):
        ours, theirs = part_of(Path(same.upper())), part_of(Path(same))
        assert ours.name[-40:].split("-")[1:] == theirs.name[-40:].split("-")[1:]
    digests = {part_of(Path(name)).name[-26:] for name in ("e\u0301.mp4", "\u00e9.mp4")}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["n" * 251, "日" * 83 + "n", "a" * 139])
def test_a_part_files_name_is_never_longer_than_its_limit(name):
    assert len(os.fsencode(part_of(Path(f"{name}.mp4")).name)) <= min(255, max(143, len(os.fsencode(name))))
