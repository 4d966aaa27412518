"""sana-nodes get: which files it takes, and a download from a small hub of our own with the real huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from sana_nodes import cli
from sana_nodes.cli import published
from sana_nodes.host.embedded.folders import KINDS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The parts of the hub's HTTP API that a download uses, over one repository."""

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repository, self.files = repository, files
        self.asked: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.refused_then = False
        self.small_sent = threading.Event()
        self.refusal: tuple[int, str] | None = None
        self.commit, self.later = COMMIT, COMMIT
        self.resolved: list[str] = []
        self.flips = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit_of(self, path: str) -> str:
        """The commit that a listing names; the branch moves on to ``later`` after the first."""
        revision = path.partition("/revision/")[2]
        if len(revision) == len(COMMIT):
            return revision
        commit, self.commit = self.commit, self.later
        return commit

    def sibling(self, name: str) -> dict:
        """What the hub says of a file; a sha256 for what git-lfs holds."""
        data = self.files[name]
        if not name.endswith(".safetensors"):
            return {"rfilename": name, "size": len(data)}
        sha256 = hashlib.sha256(data).hexdigest()
        return {"rfilename": name, "size": len(data), "lfs": {"sha256": sha256, "size": len(data), "pointerSize": 134}}

    def sent(self, name: str) -> bytes:
        """The bytes that go out: the first ``flips`` times with one wrong."""
        data = self.files[name]
        if name.endswith(".safetensors") and self.flips:
            self.flips -= 1
            data = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
        return data


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _send(self, status: int, body: bytes, headers: dict, send_body: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def _answer(self, body: bool) -> None:
        hub, path = self.server, self.path.split("?")[0]
        if hub.refusal:
            status, code = hub.refusal
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)
        elif path.startswith(f"/api/models/{hub.repository}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in hub.files.items()
            ]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/api/models/{hub.repository}"):
            siblings = [hub.sibling(name) for name in hub.files]
            info = {
                "id": hub.repository,
                "sha": hub.commit_of(path),
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/{hub.repository}/resolve/"):
            revision, name = path.split("/resolve/")[1].split("/", 1)
            hub.resolved.append(revision)
            self._file(name, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _file(self, name: str, body: bool) -> None:
        hub, data = self.server, self.server.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": hub.commit,
            "Accept-Ranges": "bytes",
        }
        if not body:
            self._send(200, data, headers, False)
            return
        asked = self.headers.get("Range")
        hub.asked.append((name, asked))
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = hub.sent(name)[start:]
        if hub.cut_after is not None and len(rest) > hub.cut_after:
            self.send_response(206 if asked else 200)
            for key, value in {"Content-Length": str(len(rest)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(rest[: hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            hub.cut_after = None
            if hub.refused_then:
                # Files arrive side by side: the small one shall be whole before the hub refuses everything.
                hub.small_sent.wait(timeout=60)
                hub.refusal = (503, "busy")
            return
        self._send(206 if asked else 200, rest, headers)
        if not name.endswith(".safetensors"):
            hub.small_sent.set()


FILES = {
    "config.json": b'{"_class_name": "AutoencoderDC"}',
    "README.md": b"words",
    "assets/picture.jpg": b"pixels",
    "diffusion_pytorch_model.safetensors": bytes(range(256)) * 100_000,
}
ROW = next(row for row in published.published() if row.name == "dc-ae-1.1")


@pytest.fixture
def hub():
    with Hub(ROW.repository, dict(FILES)) as running:
        yield running
        running.shutdown()


def run(hub, tmp_path, *arguments):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "COMFYUI_PATH": ""}
    environment.pop("HF_HUB_OFFLINE", None)
    environment["HF_HUB_DISABLE_XET"] = "1"
    command = [sys.executable, "-m", "sana_nodes", "get", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)


def test_a_model_lands_where_its_loader_looks(hub, tmp_path):
    done = run(hub, tmp_path, "dc-ae-1.1", "--to", "models")
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "models" / "vae" / "dc-ae-1.1"
    assert done.stdout.strip() == os.path.join("models", "vae", "dc-ae-1.1")  # noqa: PTH118
    got = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if ".cache" not in file.parts and file.is_file()
    }
    assert got == {"config.json", "diffusion_pytorch_model.safetensors"}
    for name in got:
        assert (folder / name).read_bytes() == FILES[name]


WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_broken_connection_is_gone_on_with(hub, tmp_path):
    hub.cut_after = 15_000_000  # the library writes 10 MiB at a time
    done = run(hub, tmp_path, "dc-ae-1.1", "--to", "models")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "models" / "vae" / "dc-ae-1.1" / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    asked = [place for name, place in hub.asked if name == WEIGHTS]
    assert len(asked) == 2 and int(asked[1].removeprefix("bytes=").split("-")[0]) >= 10_000_000


def test_after_a_failure_whole_files_are_kept_and_half_ones_have_no_name(hub, tmp_path):
    hub.cut_after, hub.refused_then = 15_000_000, True
    done = run(hub, tmp_path, "dc-ae-1.1", "--to", "models")
    assert done.returncode == 1 and "run the same command again to resume" in done.stderr
    folder = tmp_path / "models" / "vae" / "dc-ae-1.1"
    assert not (folder / WEIGHTS).exists() and (folder / "config.json").exists()
    hub.refusal = None
    hub.asked.clear()
    assert run(hub, tmp_path, "dc-ae-1.1", "--to", "models").returncode == 0
    assert {name for name, _ in hub.asked} == {WEIGHTS}
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_flipped_byte_on_the_way_is_found_and_downloaded_again(hub, tmp_path):
    hub.flips = 1
    done = run(hub, tmp_path, "dc-ae-1.1", "--to", "models")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{WEIGHTS} does not have the sha256" in done.stderr
    assert (tmp_path / "models" / "vae" / "dc-ae-1.1" / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert [name for name, _ in hub.asked].count(WEIGHTS) == 2


def test_a_file_that_stays_wrong_is_refused_and_leaves_nothing(hub, tmp_path):
    hub.flips = 2
    done = run(hub, tmp_path, "dc-ae-1.1", "--to", "models")
    assert done.returncode == 1 and f"{WEIGHTS} arrived from {ROW.repository} with another sha256" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "models" / "vae" / "dc-ae-1.1" / WEIGHTS).exists()


def test_a_flipped_byte_on_the_disk_is_found(hub, tmp_path):
    """Size and time of the file are as before: the library alone would keep it."""
    assert run(hub, tmp_path, "dc-ae-1.1", "--to", "models").returncode == 0
    file = tmp_path / "models" / "vae" / "dc-ae-1.1" / WEIGHTS
    state, data = file.stat(), bytearray(FILES[WEIGHTS])
    data[12345] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    done = run(hub, tmp_path, "dc-ae-1.1", "--to", "models")
    assert done.returncode == 0 and f"{WEIGHTS} does not have the sha256" in done.stderr
    assert file.read_bytes() == FILES[WEIGHTS]


def test_all_files_are_of_the_listings_commit(hub, tmp_path):
    """Each file is asked for by the commit that the listing named, never by a branch that may move on."""
    hub.commit, hub.later = "e" * 40, "f" * 40
    assert run(hub, tmp_path, "dc-ae-1.1", "--to", "models").returncode == 0
    assert set(hub.resolved) == {"e" * 40}


def test_what_a_person_reads_when_it_is_not_available(hub, tmp_path, capsys):
    hub.refusal = (403, "GatedRepo")
    done = run(hub, tmp_path, "dc-ae-1.1")
    assert done.returncode == 1 and "is gated: accept its licence at" in done.stderr
    hub.refusal = (404, "RepoNotFound")
    done = run(hub, tmp_path, "dc-ae-1.1")
    assert done.returncode == 1 and "is not there" in done.stderr
    assert "Traceback" not in done.stderr
    assert cli.main(["get", "dc-ae-9"]) == 2
    assert "no published model is called 'dc-ae-9'; choose one of" in capsys.readouterr().err


def test_the_table(capsys):
    rows = published.published()
    assert len({row.name for row in rows}) == len({row.repository for row in rows}) == len(rows)
    assert {row.kind for row in rows} <= set(KINDS)
    assert cli.main(["get"]) == 0
    out = capsys.readouterr().out
    assert all(row.name in out and row.repository in out for row in rows)


PIPELINE = [
    "model_index.json",
    "README.md",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model.bf16.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.bf16.json",
    "text_encoder/model.bf16-00001-of-00002.safetensors",
    "text_encoder/model.bf16-00002-of-00002.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer.model",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "assets/demo.mp4",
]


def test_one_precision_of_each_part_is_taken():
    plain = set(published.needed_files(PIPELINE))
    assert not any("bf16" in name for name in plain) and "text_encoder/model-00002-of-00002.safetensors" in plain
    chosen = set(published.needed_files(PIPELINE, "bf16"))
    assert {name for name in chosen if name.startswith("transformer/")} == {PIPELINE[2], PIPELINE[4]}
    assert {name for name in chosen if name.startswith("text_encoder/")} == set(PIPELINE[8:11])
    assert "vae/diffusion_pytorch_model.safetensors" in chosen and "tokenizer/tokenizer.model" in chosen
    assert not {"README.md", "assets/demo.mp4"} & chosen
    assert published.needed_files(PIPELINE, None, "vae") == PIPELINE[13:15]


def test_no_node_downloads():
    """huggingface_hub is imported by the command alone."""
    files = {file.relative_to(tiny.REPOSITORY): file for file in tiny.REPOSITORY.rglob("*.py")}
    users = [
        name
        for name, file in files.items()
        if not {"tests", ".venv"} & set(name.parts) and "huggingface_hub" in file.read_text(encoding="utf-8")
    ]
    assert users == [Path(published.__file__).resolve().relative_to(tiny.REPOSITORY)]


@pytest.fixture
def repository(monkeypatch):
    """A hub in name only: what snapshot_download does is up to each test."""
    import huggingface_hub

    files = [SimpleNamespace(rfilename=name, lfs=None) for name in ("config.json", WEIGHTS)]
    info = SimpleNamespace(siblings=files, sha="commit")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)

    def downloads(*steps):
        calls = iter(steps)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **given: next(calls)(given["local_dir"]))
        return calls

    return downloads


def arrive(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", WEIGHTS):
        (folder / name).write_bytes(FILES[name])


def fail(error):
    def step(folder):
        raise error

    return step


def test_a_download_that_breaks_inside_a_file_goes_on(repository, tmp_path):
    """huggingface_hub before 1.0 gives up there, with an OSError that has no number."""
    repository(fail(OSError("Connection broken")), fail(OSError("Connection broken")), arrive)
    assert (published.get(ROW, tmp_path) / WEIGHTS).is_file()


def test_a_full_disk_is_not_tried_again(repository, tmp_path):
    left = repository(fail(OSError(28, "No space left on device")), arrive)
    with pytest.raises(published.CannotGet, match="No space left"):
        published.get(ROW, tmp_path)
    assert next(left) is arrive


def test_a_download_without_the_weights_is_no_success(repository, tmp_path):
    """Where the server goes away in the middle, snapshot_download warns and returns the folder as it is."""
    repository(lambda folder: None)
    with pytest.raises(published.CannotGet, match="config.json did not arrive"):
        published.get(ROW, tmp_path)
