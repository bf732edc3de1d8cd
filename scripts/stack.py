"""Worker and backend as two processes on loopback: start, wait until ready, stop, never leak.

Duty: what `make serve` and `make demo` share. It speaks to both only as any client does: by
environment variables, HTTP and signals.
Must not know: how a picture is made or stored.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx2

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO_MODEL = REPOSITORY / "demo_model" / "sdxl-demo"
# The small model's own networks, by the worker's settings.
DEMO_NETWORKS = {
    "CONTROLS_DIR": REPOSITORY / "demo_model" / "controls",
    "UPSCALERS_DIR": REPOSITORY / "demo_model" / "upscalers",
    "ADAPTERS_DIR": REPOSITORY / "demo_model" / "adapters",
}
LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1


class StackError(RuntimeError):
    """A process did not come up or went away; the message says which, and how its log ends."""


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_taken(port: int) -> bool:
    """Whether something listens on `port` of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _die_with_parent() -> None:
    """Ask Linux to end this child when its parent is gone, also after the parent's kill -9."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Service:
    """One process: `command` run in `folder`, ready when `ready_url` answers 200."""

    name: str
    command: list[str]
    folder: Path
    environment: Mapping[str, str]
    ready_url: str
    log: Path | None = None  # None: the terminal
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_file: IO[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches only the parent."""
        if self.log is not None:
            self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._log_file = self.log.open("ab")
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=subprocess.STDOUT if self._log_file else None,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, timeout_s: float, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Wait until `ready_url` answers 200.

        Raises:
            StackError: the process ended, or `timeout_s` went by.
        """
        deadline = time.monotonic() + timeout_s
        with httpx2.Client(timeout=5) as client:
            while not should_stop():
                if not self.is_running():
                    code = self.process.returncode if self.process else None
                    raise StackError(f"the {self.name} ended with exit code {code}{self._tail()}")
                with contextlib.suppress(httpx2.HTTPError):
                    if client.get(self.ready_url).status_code == 200:
                        return
                if time.monotonic() > deadline:
                    raise StackError(
                        f"the {self.name} was not ready after {timeout_s:.0f} s{self._tail()}"
                    )
                time.sleep(0.2)

    def stop(self, grace_s: float = 20.0) -> int | None:
        """Ask the process to end; after `grace_s` seconds end it. Returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._log_file is not None:
            self._log_file.close()
        return self.process.returncode

    def _tail(self) -> str:
        if self.log is None or not self.log.exists():
            return ""
        return "; its log ends:\n" + self.log.read_text(errors="replace")[-3000:]


@dataclass(frozen=True)
class Stack:
    """A worker with a model, and a backend that sends it work."""

    worker: Service
    backend: Service
    backend_url: str
    worker_url: str

    def start(
        self, timeout_s: float = 180.0, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Start both and wait until both are ready."""
        self.worker.start()
        self.backend.start()
        self.worker.wait_ready(timeout_s, should_stop)
        self.backend.wait_ready(timeout_s, should_stop)

    def stop(self) -> None:
        """Stop the backend first: it hands back its jobs while the worker still answers."""
        self.backend.stop()
        self.worker.stop()


def build_stack(
    *,
    port: int,
    worker_port: int,
    data_dir: Path,
    model: str | None = None,
    logs: Path | None = None,
    extra: Mapping[str, str] | None = None,
) -> Stack:
    """The two services on loopback, data in `data_dir`, the small model unless `model` is given."""
    worker_url = f"http://{LOOPBACK}:{worker_port}"
    backend_url = f"http://{LOOPBACK}:{port}"
    common = dict(extra or {})
    # Of this start alone unless there is one: both services are started here.
    token = (
        os.environ.get("WORKER_API_TOKEN")
        or os.environ.get("MODAL_API_TOKEN")
        or secrets.token_hex(32)
    )
    worker = Service(
        name="worker",
        command=[sys.executable, "-m", "sdxl_worker.serve"],
        folder=REPOSITORY / "worker",
        environment={
            "BASE_MODEL": model or os.environ.get("BASE_MODEL") or str(DEMO_MODEL),
            "WORKER_HOST": LOOPBACK,
            "WORKER_PORT": str(worker_port),
            # The backend signs URLs of its own local storage: plain http on loopback.
            "LORA_ALLOW_LOOPBACK": "true",
            "WORKER_API_TOKEN": token,
            **common,
        },
        ready_url=f"{worker_url}/health",
        log=logs / "worker.log" if logs else None,
    )
    backend = Service(
        name="backend",
        command=[sys.executable, "-m", "app.serve"],
        folder=REPOSITORY / "backend",
        environment={
            "HOST": LOOPBACK,
            "PORT": str(port),
            "DATA_DIR": str(data_dir),
            "MODAL_ENDPOINT_URL": f"{worker_url}/generate-image",
            "MODAL_API_TOKEN": token,
            **common,
        },
        ready_url=f"{backend_url}/health/ready",
        log=logs / "backend.log" if logs else None,
    )
    return Stack(worker, backend, backend_url, worker_url)


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """`stack`, started, and stopped whatever happens inside."""
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
