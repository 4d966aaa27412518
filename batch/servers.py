"""The engine comfyui: rows on running ComfyUI servers over their API; a row whose server is lost goes to another."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ..cli.calls import BadCall
from .checking import loaders_of
from .columns import Changes
from .listening import Listener, import_websocket
from .tables import BadRow
from .worker import Job, Made, Stopped, Take, Task, delivered, is_full, with_inputs

QUEUED = 2
"""Rows that a server has: one at work and one in its queue, so that it never waits. People's own runs come between."""

PAUSE = 0.05
"""Seconds between two questions whether a row has ended, where no websocket tells it."""

UNTOLD = 40
"""Pauses between two such questions where a websocket tells it: a message may be lost."""

TIMEOUT = 30.0
"""Seconds in which a server must answer."""

LONGEST_QUEUE = 8
"""Rows in a server's queue, of everybody, with which it gets no more of ours."""

PATIENCE = 120.0
"""Seconds in which a server that does not answer is asked again: it may have been started again."""


class ServerLost(Exception):
    """A server that does not answer, or has forgotten a row: it was started again."""


class Refused(Exception):
    """A server's answer to a row that it does not run."""


class Server:
    """One ComfyUI at ``host:port``."""

    def __init__(self, address: str):
        host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
        if not host or not port.isdigit():
            raise BadCall(f"--address {address!r} is not of the form HOST:PORT")
        self.address, self.host, self.port = address, host, int(port)
        self.client = uuid.uuid4().hex
        self.uploaded: set[tuple] = set()
        self._uploading = threading.Lock()

    def ask(self, path: str, body: object = None) -> Any:
        """What the server answers to a GET, or with a body to a POST of JSON."""
        data = None if body is None else json.dumps(body).encode()
        answer = self.raw(path, data, "application/json")
        return json.loads(answer) if answer else None

    def raw(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """The bytes of an answer. ServerLost where none comes, Refused for a status of 400 and above."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        try:
            headers = {"Content-Type": kind} if body is not None else {}
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerLost(f"{self.address} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise Refused(_refusal(answer.status, data))
        return data

    def upload(self, file: Path, name: str) -> None:
        """Put an input file where the server's Load Image finds it; a file that it has from here is not sent again."""
        with self._uploading:
            stamp = (name, file.stat().st_size, file.stat().st_mtime_ns)
            if stamp not in self.uploaded:
                self._send_file(file, name)
                self.uploaded.add(stamp)

    def _send_file(self, file: Path, name: str) -> None:
        border, folder = uuid.uuid4().hex, Path(name).parent.as_posix()
        parts = {"overwrite": "true", "type": "input", "subfolder": "" if folder == "." else folder}
        lines = [
            f'--{border}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in parts.items()
        ]
        safe = Path(name).name.replace('"', "%22")
        head = f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{safe}"\r\n\r\n'
        body = "".join([*lines, head]).encode() + file.read_bytes() + f"\r\n--{border}--\r\n".encode()
        self.raw("/upload/image", body, f"multipart/form-data; boundary={border}")


def _refusal(status: int, data: bytes) -> str:
    """ComfyUI's reasons in one line for each node."""
    try:
        answer = json.loads(data)
        nodes = answer.get("node_errors") or {}
        lines = [
            f"node {key} ({found['class_type']}): {'; '.join(e['details'] or e['message'] for e in found['errors'])}"
            for key, found in nodes.items()
        ]
        return "\n".join(lines) or str(answer["error"].get("message", answer["error"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"the server answers with status {status}"


class ServersEngine:
    """Rows on ComfyUI servers; ``address``: HOST:PORT, several separated by commas.

    ``on_step(text)`` is called with each step of a row.
    """

    def __init__(self, job: Job, workers: int | None = None, address: str | None = None):
        if workers is not None:
            raise BadCall("--workers is for the engine ray; the engine comfyui has the servers of --address")
        self.job, self.servers = job, servers_at(address)
        self.on_step: Callable[[str], None] = lambda text: None
        self.facts = {server: facts_of(server) for server in self.servers}
        self.keys: dict[str, str] = {}
        self.listeners = {server: self._listener(server) for server in self.servers}
        self.constant = [
            name for key, node in job.graph.items() if key not in job.varied for name in self._files(node["inputs"])
        ]
        self.pool = ThreadPoolExecutor((QUEUED + 1) * len(self.servers))
        self.ending = threading.Event()

    def _listener(self, server: Server) -> Listener:
        def step(row: str, value: int, most: int) -> None:
            if row in self.keys:
                self.on_step(f"{self.keys[row]} {value}/{most} on {server.address}")

        return Listener(server.host, server.port, server.client, step)

    def _files(self, inputs: Mapping[str, Any]) -> list[str]:
        """The input files that a node's values name."""
        folder = self.job.input
        return [value for value in inputs.values() if folder and isinstance(value, str) and _is_file(folder, value)]

    def results(self, take: Take) -> Iterator[Made]:
        """Make the tasks that ``take`` gives until it gives none and all are made; yields Made as they end."""
        idle = [server for _ in range(QUEUED) for server in self.servers]
        again: deque[Task] = deque()
        running: dict[Future, tuple[Server, Task | None]] = {}
        while True:
            self._send(idle, again, take, running)
            if not again and not any(task for _, task in running.values()):
                return
            if not running:
                raise Stopped("no server answers any more; start them, and give the same command again")
            ended = wait(running, timeout=PAUSE if idle else None, return_when=FIRST_COMPLETED).done
            for future in ended:
                server, task = running.pop(future)
                if task is None:  # it was asked whether it is there again
                    idle += [server] * QUEUED if future.result() else []
                    continue
                try:
                    yield future.result()
                    idle.append(server)
                except ServerLost:
                    again.append(task)
                    self._look_for(server, idle, running)

    def _send(self, idle: list[Server], again: deque[Task], take: Take, running: dict) -> None:
        """Rows to the servers with the shortest queues; with a long one, where everybody's count, it gets none."""
        for server in sorted(idle, key=self._queue_of):
            if self._queue_of(server) >= LONGEST_QUEUE or not (tasks := [again.popleft()] if again else take(1)):
                return
            idle.remove(server)
            running[self.pool.submit(self._make, server, tasks[0])] = (server, tasks[0])

    def _queue_of(self, server: Server) -> int:
        return self.listeners[server].remaining or 0

    def _look_for(self, server: Server, idle: list[Server], running: dict) -> None:
        """A server that was lost gets no rows until it answers again."""
        idle[:] = [other for other in idle if other is not server]
        if not any(other is server and task is None for other, task in running.values()):
            running[self.pool.submit(self._answers, server)] = (server, None)

    def _answers(self, server: Server) -> bool:
        """Whether a server is there again within PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not self.ending.wait(20 * PAUSE):
            try:
                facts_of(server)
            except BadCall:
                continue
            server.uploaded.clear()
            return True
        return False

    def _make(self, server: Server, task: Task) -> Made:
        begin, folder = time.perf_counter(), self.job.staging / f"row-{task.number}"
        made = Made(task, folder=str(folder), **self.facts[server])
        try:
            outputs = self._run(server, with_inputs(self.job.graph, task.inputs), task)
            folder.mkdir(parents=True, exist_ok=True)
            paths = [_fetched(server, item, folder / str(number)) for number, item in enumerate(_saved(outputs))]
            made.files = delivered(self.job, task, paths)
        except ServerLost:
            raise
        except Exception as error:
            made.error, made.full = str(error) or type(error).__name__, is_full(error, self.job.output)
        made.seconds = round(time.perf_counter() - begin, 4)
        return made

    def _run(self, server: Server, graph: dict, task: Task) -> Mapping:
        """The outputs of a graph on a server by node id; Refused says which node failed."""
        for name in [*self.constant, *(name for inputs in task.inputs.values() for name in self._files(inputs))]:
            if self.job.input:
                server.upload(self.job.input / name, name)
        sent = server.ask("/prompt", {"prompt": graph, "client_id": server.client})["prompt_id"]
        self.keys[sent] = task.key
        try:
            entry = self._ended(server, sent)
        except BaseException:
            _cancel(server, sent)
            raise
        finally:
            self.listeners[server].forget(sent)
            self.keys.pop(sent, None)
        for event, data in entry["status"]["messages"]:
            if event in ("execution_error", "execution_interrupted"):
                reason = data.get("exception_message", "").strip() or "it was interrupted"
                raise Refused(f"node {data['node_id']} ({data['node_type']}): {reason}")
        return entry["outputs"]

    def _ended(self, server: Server, sent: str) -> Mapping:
        """The history of a row, when it has ended. ServerLost where the server has it no more."""
        missing, listener = 0, self.listeners[server]
        while missing < 2:
            event = listener.ended(sent)
            event.clear()
            if found := server.ask(f"/history/{sent}"):
                return found[sent]
            queue = server.ask("/queue")
            known = {item[1] for part in ("queue_running", "queue_pending") for item in queue[part]}
            missing = 0 if sent in known else missing + 1
            event.wait(PAUSE * UNTOLD if listener.connected and not missing else PAUSE)
            if self.ending.is_set():
                raise ServerLost("the batch ends")
        raise ServerLost(f"{server.address} no longer has a row that it was given")

    def close(self) -> None:
        """Take the rows at work off the servers' queues."""
        self.ending.set()
        for listener in self.listeners.values():
            listener.close()
        self.pool.shutdown(cancel_futures=True)


def _cancel(server: Server, sent: str) -> None:
    """Take a row off a server's queue, or interrupt it where it is at work: nobody else's."""
    try:
        server.ask("/queue", {"delete": [sent]})
        if any(item[1] == sent for item in server.ask("/queue")["queue_running"]):
            server.ask("/interrupt", {"prompt_id": sent})
    except (ServerLost, Refused, ValueError):
        pass


def _saved(outputs: Mapping) -> list[dict]:
    """The files that nodes saved, in the order of the nodes' ids."""
    items = [item for key in sorted(outputs) for shown in outputs[key].values() for item in shown]
    return [item for item in items if isinstance(item, dict) and item.get("type") == "output"]


def _fetched(server: Server, item: Mapping, stem: Path) -> Path:
    query = {"filename": item["filename"], "subfolder": item.get("subfolder", ""), "type": "output"}
    path = stem.with_name(stem.name + Path(item["filename"]).suffix)
    path.write_bytes(server.raw(f"/view?{urllib.parse.urlencode(query)}"))
    return path


def _is_file(folder: Path, name: str) -> bool:
    try:
        path = (folder / name).resolve()
        return path.is_file() and path.is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return False


def servers_at(address: str | None) -> list[Server]:
    """The servers of --address; BadCall where there is none."""
    names = [name.strip() for name in (address or "").split(",") if name.strip()]
    if not names:
        raise BadCall("the engine comfyui needs --address HOST:PORT of a running ComfyUI; several with commas")
    return [Server(name) for name in names]


def facts_of(server: Server) -> dict:
    """``device`` and ``versions`` of a server, for the manifest; BadCall where it does not answer."""
    try:
        found = server.ask("/system_stats")
    except (ServerLost, Refused, ValueError) as error:
        raise BadCall(f"no ComfyUI at {server.address}: {error}") from error
    system, devices = found.get("system", {}), found.get("devices") or [{}]
    names = {"comfyui": "comfyui_version", "torch": "pytorch_version", "python": "python_version"}
    versions = {name: str(system[key]) for name, key in names.items() if key in system}
    return {"device": str(devices[0].get("name", "")), "versions": versions}


class ServerChecks:
    """What a server's own declarations have against the inputs of a row. Each row is checked as a whole when it is
    sent: a server has no call that checks and does not run.
    """

    def __init__(self, graph: Mapping[str, dict], address: str | None, input: Path | None):
        import_websocket()  # before a table of any length is read
        server = servers_at(address)[0]
        facts_of(server)
        self.files: tuple = (input,) if input else ()
        self.graph, self.input, info = graph, input, server.ask("/object_info")
        if unknown := [key for key, node in graph.items() if node["class_type"] not in info]:
            kind = graph[unknown[0]]["class_type"]
            raise BadCall(f"node {unknown[0]} is a {kind}, which the ComfyUI at {server.address} does not have")
        names = {node["class_type"] for node in graph.values()}
        self.loaders = loaders_of({key: info[node["class_type"]].get("output", ()) for key, node in graph.items()})
        self.declared: Mapping[str, Mapping[str, tuple]] = {name: _specs(info[name]["input"]) for name in names}

    def check(self, inputs: Changes, whole: bool) -> None:
        for key, values in inputs.items():
            specs = self.declared[self.graph[key]["class_type"]]
            for name, value in values.items():
                if name in specs and not isinstance(value, list):
                    self._check_value(f"node {key}: {name}", value, specs[name])

    def _check_value(self, where: str, value: Any, spec: tuple) -> None:
        kind, options = spec
        if isinstance(kind, list):
            uploaded = any(key.endswith("_upload") and on for key, on in options.items())
            local = uploaded and self.input is not None and _is_file(self.input, str(value))
            if value not in kind and not local:
                raise BadRow(f"{where} is {str(value)[:100]!r}; choose one of {', '.join(map(str, kind[:30]))}")
        elif isinstance(value, (int, float)) and kind in ("INT", "FLOAT"):
            low, high = options.get("min", value), options.get("max", value)
            if not low <= value <= high:
                raise BadRow(f"{where} is {value}; give a number from {low} to {high}")


def _specs(declared: Mapping) -> dict[str, tuple]:
    """Kind (a list: its choices) and options of each input. From 0.3.51 a choice is COMBO with its list among them."""
    found = {}
    for name, spec in {**declared.get("required", {}), **declared.get("optional", {})}.items():
        kind, options = spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
        found[name] = (options["options"] if kind == "COMBO" and "options" in options else kind, options)
    return found
