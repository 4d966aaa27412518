"""What a ComfyUI server tells over its websocket: when a row has ended, how far it is, and how long its queue is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..cli.calls import BadCall

ENDS = ("execution_success", "execution_error", "execution_interrupted")

AGAIN = 2.0
"""Seconds after which a connection that was lost is opened again."""

TIMEOUT = 60.0
"""Seconds after which the connection to a server that tells nothing is opened again: the server may be gone."""


def import_websocket() -> Any:
    """The module websocket; BadCall names the extra where it is missing."""
    try:
        import websocket
    except ImportError as error:
        raise BadCall(
            "the engine comfyui needs the package websocket-client: pip install sana-nodes[comfyui]"
        ) from error
    return websocket


class Listener:
    """What one server tells of the rows that were sent to it as ``client``.

    ``remaining``: rows in its queue and at work, of everybody; None where it is not connected. ``on_step(row, value,
    most)``: a step of a row.
    """

    def __init__(self, host: str, port: int, client: str, on_step: Callable[[str, int, int], None] = lambda *_: None):
        self.websocket, self.url, self.on_step = import_websocket(), f"ws://{host}:{port}/ws?clientId={client}", on_step
        self.remaining: int | None = None
        self._ended: dict[str, threading.Event] = {}
        self._stopping = threading.Event()
        self._socket: Any = None
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
        if (open_now := self._socket) is not None:
            open_now.abort()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                for message in self._messages():
                    self._hear(message.get("type"), message.get("data"))
            except (OSError, ValueError, TypeError, AttributeError, self.websocket.WebSocketException):
                pass  # no websocket, or messages of another kind: who waits for a row asks the server itself
            finally:
                self._leave()
            self._stopping.wait(AGAIN)

    def _messages(self) -> Iterator[dict]:
        """The JSON messages as they come, until the server closes the connection; previews are left out."""
        text, close = self.websocket.ABNF.OPCODE_TEXT, self.websocket.ABNF.OPCODE_CLOSE
        options = {"http_no_proxy": ["*"], "skip_utf8_validation": True}  # as the API's calls; JSON is decoded strictly
        self._socket = self.websocket.create_connection(self.url, timeout=TIMEOUT, **options)
        while not self._stopping.is_set():
            kind, data = self._socket.recv_data()
            if kind == close:
                return
            found = json.loads(data) if kind == text else None
            if isinstance(found, dict):
                yield found

    def _leave(self) -> None:
        if self._socket is not None:
            self._socket.shutdown()
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
