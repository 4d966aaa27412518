"""``sana-nodes batch --engine comfyui`` against servers that speak as much of ComfyUI's API as it uses."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from base64 import b64encode
from contextlib import suppress
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, urlparse

import pytest
import small_batch
from PIL import Image
from sana_nodes import batch, host
from sana_nodes.batch import listening, servers
from sana_nodes.batch.worker import Stopped
from sana_nodes.cli.calls import BadCall

pytest.importorskip("websocket", reason="websocket-client is not installed: pip install sana-nodes[comfyui]")

LIST = [["back.png", "mark.png"], {"image_upload": True}]
NUMBER = ["INT", {"default": 0, "min": 0, "max": 16384}]
INFO = {
    "LoadImage": {"input": {"required": {"image": ["COMBO", {"options": LIST[0], "image_upload": True}]}}},
    "ImageCompositeMasked": {
        "input": {"required": {"destination": ["IMAGE"], "source": ["IMAGE"], "x": NUMBER, "y": NUMBER,
                               "resize_source": ["BOOLEAN", {}]}}
    },
    "SaveImage": {"input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}}},
    "SolidMask": {"input": {"required": {"value": ["FLOAT", {}], "width": NUMBER, "height": NUMBER}}},
}  # fmt: skip


class Fake(ThreadingHTTPServer):
    """A server that makes the rows of small_batch. ``dies_after`` rows it forgets all and answers no more.

    ``queue``: rows of other people, which its websocket tells; without it has none. ``waits``: seconds of a row.
    ``says``: what its websocket sends first.
    """

    daemon_threads = True
    started: list = []

    def __init__(self, dies_after=None, forgets=0, fails="", queue=None, waits=0.0, port=0, says=None):
        super().__init__(("127.0.0.1", port), Handler)
        self.history, self.rows, self.uploads, self.sockets = {}, [], [], []
        self.questions = self.opened = 0
        self.dies_after, self.forgets, self.fails, self.queue, self.waits = dies_after, forgets, fails, queue, waits
        self.says = says
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

        Fake.started.append(self)

    def end(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def run(self, graph: dict) -> dict:
        inputs = graph["2"]["inputs"]
        if inputs["y"] == 31 and self.fails == "refuse":
            error = {"details": "y: Value too big", "message": "no"}
            nodes = {"2": {"class_type": "ImageCompositeMasked", "errors": [error]}}
            return {"error": {"message": "invalid"}, "node_errors": nodes}
        number = str(len(self.rows))
        self.rows.append((inputs["x"], inputs["y"]))
        if self.forgets:
            self.forgets -= 1
            return {"prompt_id": "lost"}
        messages = []
        if inputs["y"] == 31 and self.fails == "run":
            failed = {"node_id": "2", "node_type": "ImageCompositeMasked", "exception_message": "too far\n"}
            messages = [["execution_error", failed]]
        shown = {"filename": f"{inputs['x']}_{inputs['y']}.png", "subfolder": "", "type": "output"}
        preview = {"filename": "p.png", "subfolder": "", "type": "temp"}
        outputs = {"3": {"images": [shown]}, "9": {"images": [preview], "animated": [False]}}
        entry = {"outputs": outputs, "status": {"messages": messages}}
        if self.waits:
            threading.Timer(self.waits, self.end_row, (number, entry)).start()
        else:
            self.history[number] = entry
        return {"prompt_id": number}

    def end_row(self, number: str, entry: dict) -> None:
        self.tell("progress", {"value": 1, "max": 2, "prompt_id": number})
        self.history[number] = entry
        self.tell("execution_success", {"prompt_id": number})

    def tell(self, kind: str, data: dict) -> None:
        self.send(json.dumps({"type": kind, "data": data}))

    def send(self, message: str | bytes) -> None:
        """A frame of text or bytes to each who listens."""
        data, first = (message.encode(), b"\x81") if isinstance(message, str) else (message, b"\x82")
        for stream in list(self.sockets):
            with suppress(OSError, ValueError):
                stream.sendall(first + b"\x7e" + len(data).to_bytes(2, "big") + data)

    def drop_sockets(self) -> None:
        for stream in self.sockets:
            stream.shutdown(socket.SHUT_RDWR)
        self.sockets.clear()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, data, status: int = 200):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path = urlparse(self.path)
        if path.path == "/ws" and self.server.queue is not None:
            return self.open_socket()
        self.server.questions += path.path.startswith(("/history", "/queue"))
        if path.path == "/view":
            x, y = map(int, parse_qs(path.query)["filename"][0].removesuffix(".png").split("_"))
            image, file = Image.new("RGB", (small_batch.SIDE,) * 2), BytesIO()
            image.putpixel((x, y), (255, 255, 255))
            image.save(file, "png")
            return self.answer(file.getvalue())
        name = path.path.rpartition("/")[2]
        found = {name: self.server.history[name]} if name in self.server.history else {}
        answers = {"/system_stats": {"system": {"comfyui_version": "0.0"}, "devices": [{"name": "cpu"}]}}
        known = [[0, str(number)] for number in range(len(self.server.rows)) if self.server.waits]
        answers |= {"/object_info": INFO, "/queue": {"queue_running": [], "queue_pending": known}}
        self.answer(answers.get(path.path, found))

    def open_socket(self):
        word = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
        accepted = b64encode(sha1(word.encode()).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        self.wfile.write("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accepted}", "", ""]).encode())
        self.server.opened += 1
        self.server.sockets.append(self.connection)
        if self.server.says is not None:
            self.server.send(self.server.says)
        self.server.tell("status", {"status": {"exec_info": {"queue_remaining": self.server.queue}}})
        with suppress(OSError):
            self.rfile.read(1)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            self.server.uploads.append(body)
            return self.answer({})
        if self.path != "/prompt":
            return self.answer(b"")
        limit = self.server.dies_after
        if limit is not None and len(self.server.rows) >= limit:
            threading.Thread(target=self.server.end).start()
            return self.connection.close()
        answer = self.server.run(json.loads(body)["prompt"])
        self.answer(answer, 400 if "error" in answer else 200)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(servers, "PAUSE", 0.002)
    monkeypatch.setattr(servers, "PATIENCE", 0.3)
    yield
    host._current = None
    while Fake.started:
        Fake.started.pop().end()


def run_on(place, table, *fakes, **options):
    address = ",".join(fake.address for fake in fakes)
    return batch.run(place.workflow, table, engine="comfyui", address=address, **place.folders, **options)


def made(place, table, *fakes, **options):
    return list(run_on(place, table, *fakes, **options))


def test_two_servers_share_the_rows(place):
    one, two = Fake(), Fake()
    records = made(place, place.points(40), one, two)
    place.assert_complete(40)
    assert len(one.rows) + len(two.rows) == 40 and min(len(one.rows), len(two.rows)) >= 5
    assert records[0]["device"] == "cpu" and records[0]["versions"] == {"comfyui": "0.0"}
    assert made(place, place.points(40), one) == []


def test_rows_of_a_server_that_dies_go_to_the_other(place):
    one, two = Fake(dies_after=4), Fake()
    made(place, place.points(20), one, two)
    place.assert_complete(20)
    assert len(one.rows) <= 4


def test_a_row_that_a_server_forgot_is_made_again(place):
    fake = Fake(forgets=2)
    made(place, place.points(6), fake)
    place.assert_complete(6)
    assert len(fake.rows) == 8


def test_no_server_left(place):
    with pytest.raises(Stopped, match="no server answers any more"):
        made(place, place.points(9), Fake(dies_after=3))
    made(place, place.points(9), Fake())
    place.assert_complete(9)


@pytest.mark.parametrize(("fails", "reason"), [("refuse", "y: Value too big"), ("run", "too far")])
def test_a_row_that_fails_on_a_server(place, fails, reason):
    rows = [{"key": "a", "2.y": 31}, {"key": "b", "2.y": 1}]
    errors = {record["key"]: record["error"] for record in made(place, rows, Fake(fails=fails))}
    assert errors == {"a": f"node 2 (ImageCompositeMasked): {reason}", "b": None}


def test_input_images_are_sent_once(place):
    fake = Fake()
    Image.new("RGB", (1, 1)).save(place.root / "input" / "new.png")
    made(place, [{"key": str(i), "2.x": i, "1.image": "new.png"} for i in range(4)], fake)
    names = [body.split(b'filename="')[1].split(b'"')[0] for body in fake.uploads]
    assert names.count(b"new.png") in (1, 2), "two rows at once may both find it missing"
    assert (place.root / "input" / "new.png").read_bytes() in fake.uploads[names.index(b"new.png")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"2.x": -1}, "row 1: node 2: x is -1; give a number from 0 to 16384"),
        ({"1.image": "absent.png"}, "'absent.png'; choose one of back.png, mark.png"),
        ({"2.x": "1"}, "2.x is '1'; give a whole number"),
    ],
)
def test_rows_are_checked_by_what_the_server_declares(place, row, reason):
    fake = Fake()
    with pytest.raises(BadCall) as raised:
        made(place, [row], fake)
    assert reason in str(raised.value) and not fake.rows


def test_unusable_servers(place):
    with pytest.raises(BadCall, match="needs --address HOST:PORT"):
        made(place, place.points(1))
    with pytest.raises(BadCall, match="no ComfyUI at 127.0.0.1:9"):
        batch.run(place.workflow, place.points(1), engine="comfyui", address="127.0.0.1:9", **place.folders)
    with pytest.raises(BadCall, match="not of the form HOST:PORT"):
        batch.run(place.workflow, place.points(1), engine="comfyui", address="here", **place.folders)
    place.graph["7"] = {"class_type": "Absent", "inputs": {}}
    place.write_workflow()
    with pytest.raises(BadCall, match="node 7 is a Absent"):
        made(place, place.points(1), Fake())


def test_an_end_of_the_batch_leaves_no_threads_waiting(place):
    running = iter(
        batch.run(place.workflow, place.points(9), engine="comfyui", address=Fake().address, **place.folders)
    )
    next(running)
    begin = time.monotonic()
    running.close()
    assert time.monotonic() - begin < 2 and len(place.manifest()) == 1


def test_a_constant_image_reaches_each_server_once(place):
    """Node 1 is set by no column; its file lies on this machine alone."""
    Image.new("RGB", (3, 1)).save(place.root / "input" / "constant.png")
    place.graph["1"]["inputs"]["image"] = "constant.png"
    place.write_workflow()
    one, two = Fake(), Fake()
    made(place, place.points(12), one, two)
    for fake in (one, two):
        names = [body.split(b'filename="')[1].split(b'"')[0] for body in fake.uploads]
        assert sorted(names) == [b"constant.png", b"mark.png"]


def test_a_server_that_comes_back_gets_rows_again(place, monkeypatch):
    """A server that ends and is started again at its address has forgotten rows and files."""
    monkeypatch.setattr(servers, "PATIENCE", 20)
    one, slow = Fake(dies_after=3), Fake(waits=0.05)
    address = f"{one.address},{slow.address}"
    again = []
    for number, _ in enumerate(
        batch.run(place.workflow, place.points(40), engine="comfyui", address=address, **place.folders)
    ):
        if number == 8:
            again.append(Fake(port=one.server_port))
    place.assert_complete(40)
    assert len(one.rows) <= 3 and len(again[0].rows) > 3 and again[0].uploads


def test_a_server_with_a_long_queue_gets_no_rows(place):
    """Rows of other people count: the websocket tells of all."""
    busy, free = Fake(queue=servers.LONGEST_QUEUE), Fake(queue=0)
    address = f"{busy.address},{free.address}"
    running = batch.run(place.workflow, place.points(20), engine="comfyui", address=address, **place.folders)
    list(running)
    place.assert_complete(20)
    assert len(free.rows) >= 16, "those that were sent before it told are at most its first two"


# ---- the websocket


def test_the_websocket_tells_when_a_row_has_ended(place, monkeypatch):
    """Not a question every few milliseconds."""
    monkeypatch.setattr(servers, "UNTOLD", 5000)
    fake = Fake(queue=0, waits=0.05)
    made(place, place.points(6), fake)
    place.assert_complete(6)
    assert fake.questions <= 6 * 6


def test_steps_are_told(place):
    texts, fake = [], Fake(queue=0, waits=0.05)
    running = batch.run(place.workflow, place.points(3), engine="comfyui", address=fake.address, **place.folders)
    running.on_step = texts.append
    list(running)
    assert {text.split()[0] for text in texts} == {"p0", "p1", "p2"}
    assert texts[0].endswith(f"1/2 on {fake.address}")


def test_a_websocket_that_ends_is_opened_again(place, monkeypatch):
    """A row that ended meanwhile is asked for at once, and later ones are told again."""
    monkeypatch.setattr(servers, "UNTOLD", 5000)
    monkeypatch.setattr(listening, "AGAIN", 0.02)
    fake = Fake(queue=0, waits=0.05)
    begin, running = time.monotonic(), run_on(place, place.points(8), fake)
    for number, _ in enumerate(running):
        if number in (1, 4):
            fake.drop_sockets()
    place.assert_complete(8)
    assert fake.opened >= 3 and time.monotonic() - begin < servers.PAUSE * servers.UNTOLD


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("data", ["[1]", "{", "null", '{"type": "status", "data": {"status": 3}}', b"\0\0\0\1", b""])
def test_messages_that_say_nothing(place, data, monkeypatch):
    """Previews, and what no ComfyUI sends: rows are asked for where nothing is told."""
    monkeypatch.setattr(listening, "AGAIN", 0.02)
    fake = Fake(queue=0, waits=0.02, says=data)
    list(run_on(place, place.points(3), fake))
    place.assert_complete(3)


def test_a_server_without_a_websocket_is_asked(place):
    fake = Fake(waits=0.02)
    made(place, place.points(4), fake)
    place.assert_complete(4)
    assert fake.opened == 0


def test_the_package_of_the_websocket_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "websocket", None)
    with pytest.raises(BadCall, match=r"pip install sana-nodes\[comfyui\]"):
        made(place, place.points(1), Fake())
