"""A real ComfyUI server in a process of its own, driven over its HTTP API and websocket."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import tiny
from PIL import Image


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """``main.py --cpu`` over a base directory; use as a context manager. ``port``: None for a free one."""

    def __init__(self, home: Path, *flags: str, port: int | None = None):
        self.port, self.home, self.client = port or free_port(), home, uuid.uuid4().hex
        self.log = home / f"server-{self.port}.log"
        self.command = [sys.executable, "main.py", "--cpu", "--port", str(self.port), "--listen", "127.0.0.1"]
        self.command += ["--base-directory", str(home), "--disable-api-nodes", *flags]
        self.events: list[dict] = []
        self.previews: list[Image.Image] = []

    def __enter__(self):
        self.process = subprocess.Popen(
            self.command, cwd=tiny.COMFYUI, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )
        deadline = time.time() + 240
        while True:
            try:
                self.get("/system_stats")
                break
            except OSError:
                if self.process.poll() is not None or time.time() > deadline:
                    self.process.kill()
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}") from None
                time.sleep(0.5)
        threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    async def _listen(self):
        import aiohttp

        url = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as stream:
            async for message in stream:
                if message.type == aiohttp.WSMsgType.TEXT:
                    self.events.append({**json.loads(message.data), "at": time.time()})
                elif message.type == aiohttp.WSMsgType.BINARY and message.data[:4] == b"\0\0\0\1":
                    self.previews.append(Image.open(io.BytesIO(message.data[8:])).convert("RGB"))

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: dict) -> dict:
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read()
        return json.loads(said or b"{}")

    def queue(self, graph: dict) -> str:
        answer = self.post("/prompt", {"prompt": graph, "client_id": self.client})
        assert "prompt_id" in answer, json.dumps(answer)[:3000]
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 120) -> dict:
        deadline = time.time() + seconds
        while time.time() < deadline:
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt_id} took over {seconds} s:\n{self.log.read_text()[-2000:]}")

    def run(self, graph: dict) -> dict:
        """Queue a graph and wait; its history entry."""
        return self.wait(self.queue(graph))

    def refusal(self, graph: dict) -> str:
        """What ComfyUI says of a graph that it does not even queue."""
        answer = self.post("/prompt", {"prompt": graph})
        assert "prompt_id" not in answer and answer["node_errors"], answer
        return json.dumps(answer["node_errors"])

    def error(self, graph: dict) -> str:
        """What a failing run says in the editor."""
        entry = self.run(graph)
        said = [d for e, d in entry["status"]["messages"] if e == "execution_error"]
        assert said, f"no error: {entry['status']}"
        return f"{said[0]['node_type']}: {said[0]['exception_message']}"

    def problem(self, graph: dict) -> str:
        """What is said of a graph that cannot run: before it is queued, or by the node that fails."""
        answer = self.post("/prompt", {"prompt": graph})
        return json.dumps(answer["node_errors"]) if answer.get("node_errors") else self.error(graph)

    def pictures(self, graph: dict) -> np.ndarray:
        """The saved pictures of a run, uint8 [B, H, W, 3]."""
        entry = self.run(graph)
        assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:3000]
        found = [i for output in entry["outputs"].values() for i in output.get("images", [])]
        return np.stack(
            [np.asarray(Image.open(io.BytesIO(self.get("/view?" + urllib.parse.urlencode(i))))) for i in found]
        )

    def cached(self, prompt_id: str) -> list[str]:
        """Nodes of a run that ComfyUI did not need to run again."""
        messages = self.wait(prompt_id)["status"]["messages"]
        return next(d["nodes"] for e, d in messages if e == "execution_cached")
