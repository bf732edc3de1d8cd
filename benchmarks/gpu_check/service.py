"""The worker as a process of its own, spoken to over HTTP, and a server of LoRA files beside it.

Must not know: what is checked.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.full_size import REPOSITORY
from benchmarks.gpu_check.inputs import LoraFiles

IMPORTED_FROM = [str(REPOSITORY / room) for room in (".", "contract/src", "worker/src")]

# A UNet that is compiled as a whole, for two shapes, takes minutes on slow cores.
START_S, COMPILED_START_S = 150.0, 480.0
_CALL_S = 280


def environment_of_a_child() -> dict[str, str]:
    """Which finds this checkout's code where nothing of it is installed, and keeps its bytecode, as
    what is installed does."""
    places = [*IMPORTED_FROM, os.environ.get("PYTHONPATH", "")]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


@dataclass
class Service:
    """A worker that is ready.

    Attributes:
        start_s: from the process's start to ready.
    """

    url: str
    start_s: float
    health: Mapping[str, Any]

    def call(self, body: Mapping[str, Any], path: str = "/generate-image") -> dict[str, Any]:
        """The answer, or the error's body; `http` is its status, `wall_s` how long it took."""
        # A loopback address of ours.
        request = urllib.request.Request(  # noqa: S310
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        started = time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=_CALL_S) as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
                found["http"] = answer.status
        except urllib.error.HTTPError as error:
            found = json.loads(error.read()) | {"http": error.code}
        found["wall_s"] = time.perf_counter() - started
        return found


class _Store(http.server.BaseHTTPRequestHandler):
    """Files as object stores serve them: with ETags, conditions and ranges. Under `/fresh/N/` each
    is another file for each N from 1 to 255, as valid: its last number's last bits differ."""

    protocol_version = "HTTP/1.1"
    files: Mapping[str, bytes]
    etags: Mapping[str, str]

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        *fresh, name = self.path.partition("?")[0].strip("/").split("/")
        data = self.files.get(name)
        if data is None:
            self._answer(404, b"")
        elif fresh:
            # Not a copy of all of it, which would take as long as to fetch it.
            view = memoryview(data)
            self._answer(200, view[:-2], last=bytes([data[-2] ^ int(fresh[-1]), data[-1]]))
        elif self.headers.get("If-None-Match") == self.etags[name]:
            self._answer(304, b"", self.etags[name])
        elif wanted := self.headers.get("Range"):
            first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
            self._answer(206, data[first : last + 1], self.etags[name])
        else:
            self._answer(200, data, self.etags[name])

    def _answer(
        self, status: int, data: bytes | memoryview, etag: str | None = None, last: bytes = b""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) + len(last)))
        if etag is not None:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.write(last)


@contextmanager
def lora_server(files: LoraFiles) -> Iterator[dict[str, dict[str, str]]]:
    """File name → the `url` and `sha256` of a request's LoRA."""
    held = {name: (files.folder / name).read_bytes() for name in files.names}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in held.items()}
    etags = {name: f'"{digest}"' for name, digest in hashes.items()}
    handler = type("Store", (_Store,), {"files": held, "etags": etags})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {name: {"url": f"{url}/{name}", "sha256": hashes[name]} for name in files.names}
    finally:
        server.shutdown()
        server.server_close()


def fresh(lora: Mapping[str, str], number: int) -> dict[str, str]:
    """The LoRA as a file that nobody has seen yet, for each `number` from 1 to 255."""
    base, _, name = lora["url"].rpartition("/")
    return {"url": f"{base}/fresh/{number}/{name}"}


@contextmanager
def service(
    model: Path, device: str, log: Path, *, start_s: float = START_S, **settings: str
) -> Iterator[Service]:
    """A worker process with `model`; ended at the end of the block.

    Raises:
        RuntimeError: it was not ready within `start_s` seconds.
    """
    # Not the test kit's, which needs the backend: a bare machine has none.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = environment_of_a_child() | {
        "BASE_MODEL": str(model), "DEVICE": device, "WORKER_PORT": str(port),
        "LORA_ALLOW_LOOPBACK": "true", "RESULT_KEEP_SECONDS": "0", "HF_HUB_OFFLINE": "1",
    } | settings  # fmt: skip
    started = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sdxl_worker.serve"],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        health = _ready(process, url, started, log, start_s)
        yield Service(url, time.perf_counter() - started, health)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(
    process: subprocess.Popen[bytes], url: str, started: float, log: Path, start_s: float
) -> Mapping[str, Any]:
    while time.perf_counter() - started < start_s:
        try:
            with urllib.request.urlopen(f"{url}/health?include=modules", timeout=5) as answer:  # noqa: S310
                found: Mapping[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if json.loads(error.read()).get("status") == "failed":
                break
        except OSError:
            pass
        if process.poll() is not None:
            break
        # Not more often: it is answered by the interpreter that is to become ready.
        time.sleep(0.1)
    raise RuntimeError(f"the worker did not become ready: {log.read_text()[-1500:]}")
