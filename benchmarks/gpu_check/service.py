"""The worker as a process of its own, spoken to over HTTP, and a server of LoRA files beside it.

Must not know: what is checked.
"""

from __future__ import annotations

import functools
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

from benchmarks.gpu_check.inputs import LoraFiles

_START_S, _CALL_S = 150, 280


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


@contextmanager
def lora_server(files: LoraFiles) -> Iterator[dict[str, dict[str, str]]]:
    """File name → the `url` and `sha256` of a request's LoRA."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(files.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            name: {
                "url": f"http://127.0.0.1:{server.server_port}/{name}",
                "sha256": hashlib.sha256((files.folder / name).read_bytes()).hexdigest(),
            }
            for name in files.names
        }
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def service(model: Path, device: str, log: Path, **settings: str) -> Iterator[Service]:
    """A worker process with `model`; ended at the end of the block."""
    # Not the test kit's, which needs the backend: a bare machine has none.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = os.environ | {
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
        health = _ready(process, url, started, log)
        yield Service(url, time.perf_counter() - started, health)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(
    process: subprocess.Popen[bytes], url: str, started: float, log: Path
) -> Mapping[str, Any]:
    while time.perf_counter() - started < _START_S:
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
        time.sleep(0.02)
    raise RuntimeError(f"the worker did not become ready: {log.read_text()[-1500:]}")
