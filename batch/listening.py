"""What a ComfyUI server tells over its websocket: when a row has ended, how far it is, and how long its queue is."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

ENDS = ("execution_success", "execution_error", "execution_interrupted")
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
"""Kinds of frames (RFC 6455); 0 continues one."""

AGAIN = 2.0
"""Seconds after which a connection that was lost is opened again."""

TIMEOUT = 60.0
"""Seconds in which a server that is silent is asked whether it is there."""

LARGEST = 1 << 26
"""Bytes of a message: previews come as well, and are left out."""


class Closed(OSError):
    """The connection has ended."""


class Socket:
    """The receiving side of a websocket."""

    def __init__(self, host: str, port: int, path: str, timeout: float = TIMEOUT):
        self._socket = socket.create_connection((host, port), timeout)
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade"]
            lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
            self._socket.sendall("\r\n".join(lines).encode())
            self._file = self._socket.makefile("rb")
            if b" 101 " not in self._file.readline(1024):
                raise Closed("the server has no websocket there")
            while self._file.readline(65536).strip():
                pass
        except BaseException:
            self.close()
            raise

    def messages(self) -> Iterator[dict]:
        """The JSON messages as they come; Closed at the end."""
        while True:
            kind, data = self._message()
            if kind == TEXT:
                found = json.loads(data)
                if isinstance(found, dict):
                    yield found

    def _message(self) -> tuple[int, bytes]:
        """Kind and bytes of a message, its frames joined; pings are answered meanwhile."""
        kind, parts = 0, []
        while True:
            final, code, data = self._frame()
            if code == CLOSE:
                raise Closed("the server closed the connection")
            if code == PING:
                self._send(PONG, data)
            elif code != PONG:
                kind = code or kind
                parts.append(data)
                if final:
                    return kind, b"".join(parts)

    def _frame(self) -> tuple[bool, int, bytes]:
        first, second = self._exactly(2)
        length = second & 127
        if length > 125:
            length = int.from_bytes(self._exactly(2 if length == 126 else 8), "big")
        if length > LARGEST:
            raise Closed(f"a message of {length:,} bytes")
        return bool(first & 128), first & 15, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if data is None or len(data) < count:
            raise Closed("the connection has ended")
        return data

    def _send(self, code: int, data: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data[:125]))
        self._socket.sendall(struct.pack("!BB", 128 | code, 128 | len(masked)) + mask + masked)

    def close(self) -> None:
        """End the connection; who waits for a message gets Closed."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Listener:
    """What one server tells of the rows that were sent to it as ``client``.

    ``remaining``: rows in its queue and at work, of everybody; None where it is not connected. ``on_step(row, value,
    most)``: a step of a row.
    """

    def __init__(self, host: str, port: int, client: str, on_step: Callable[[str, int, int], None] = lambda *_: None):
        self.host, self.port, self.client, self.on_step = host, port, client, on_step
        self.remaining: int | None = None
        self._ended: dict[str, threading.Event] = {}
        self._stopping = threading.Event()
        self._socket: Socket | None = None
        threading.Thread(target=self._listen, name="sana-listening", daemon=True).start()

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def ended(self, row: str) -> threading.Event:
        """Set when a row has ended, as far as this is told: who waits for it should ask now and then."""
        return self._ended.setdefault(row, threading.Event())

    def forget(self, row: str) -> None:
        self._ended.pop(row, None)

    def close(self) -> None:
        """End the connection and the thread."""
        self._stopping.set()
        if self._socket is not None:
            self._socket.close()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                self._socket = Socket(self.host, self.port, f"/ws?clientId={self.client}")
                for message in self._socket.messages():
                    self._hear(message.get("type"), message.get("data"))
            except (OSError, ValueError):
                pass
            finally:
                self._leave()
            self._stopping.wait(AGAIN)

    def _leave(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self.remaining = None, None
        for event in list(self._ended.values()):  # who waits asks the server itself
            event.set()

    def _hear(self, kind: Any, data: Any) -> None:
        data = data if isinstance(data, dict) else {}
        row = data.get("prompt_id")
        if kind == "status":
            found = data.get("status", {}).get("exec_info", {}).get("queue_remaining")
            self.remaining = found if isinstance(found, int) else None
        elif kind in ENDS or (kind == "executing" and data.get("node") is None):
            if row in self._ended:
                self._ended[row].set()
        elif kind == "progress" and isinstance(row, str):
            self.on_step(row, data.get("value", 0), data.get("max", 0))
