"""ComfyUI servers of COMFYUI_PATH for benchmarks/batch_runs.py: started, killed, and started again at their ports."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import fresh
from server import Server


class Fleet:
    """``count`` servers with a folder each below ``folder``; use as a context manager."""

    def __init__(self, count: int, folder: Path):
        self.servers: list[Server] = []
        for number in range(count):
            home = folder / f"server-{number}"
            home.mkdir(parents=True)
            self.servers.append(Server(fresh.home(home)))

    @property
    def address(self) -> str:
        return ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def __enter__(self) -> Fleet:
        for server in self.servers:
            server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.process.kill()
            server.process.wait()

    def kill(self, number: int) -> None:
        """kill -9."""
        self.servers[number].process.kill()
        self.servers[number].process.wait()

    def start_again(self, number: int) -> None:
        """At the port that it had; returns when it answers."""
        lost = self.servers[number]
        self.servers[number] = Server(lost.home, port=lost.port)
        self.servers[number].__enter__()
