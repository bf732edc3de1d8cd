"""The backend, the worker and an S3 server as processes, as users run them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from app.core.settings import Settings
from scripts.stack import free_port as free_port

BACKEND = Path(__file__).resolve().parent.parent / "backend"
REPOSITORY = BACKEND.parent
BUCKET, ACCESS_KEY, SECRET_KEY = "pictures", "test-access", "test-secret-key"


class Process:
    """A command with its output in `log`."""

    def __init__(
        self, command: list[str], log: Path, cwd: Path = BACKEND, **environment: str
    ) -> None:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name.lower() not in Settings.model_fields
        }
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                cwd=cwd,
                env=inherited | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float = 120) -> None:
        """Return when `ready()`; an error where the process ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.popen.poll() is not None:
                raise AssertionError(f"ended with {self.popen.returncode}: {self.output()[-3000:]}")
            with contextlib.suppress(httpx2.HTTPError):
                if ready():
                    return
            time.sleep(0.2)
        raise AssertionError(f"not ready after {seconds} s: {self.output()[-3000:]}")

    def output(self) -> str:
        """Everything it has written so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(25)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.popen.kill()
        self.popen.wait()


@contextlib.contextmanager
def backend_process(folder: Path, port: int, **environment: str) -> Iterator[Process]:
    """`python -m app.serve`, ready, with its data in `folder`."""
    process = Process(
        [sys.executable, "-m", "app.serve"],
        folder.parent / "backend.log",
        BACKEND,
        PORT=str(port),
        DATA_DIR=str(folder),
        **environment,
    )
    try:
        url = f"http://127.0.0.1:{port}/health/ready"
        process.wait_until(lambda: httpx2.get(url).status_code == 200)
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def worker_process(folder: Path, model: Path, port: int | None = None) -> Iterator[str]:
    """`python -m sdxl_worker.serve` with `model`, ready; its URL."""
    port = port or free_port()
    process = Process(
        [sys.executable, "-m", "sdxl_worker.serve"],
        folder / "worker.log",
        cwd=REPOSITORY / "worker",
        BASE_MODEL=str(model),
        WORKER_HOST="127.0.0.1",
        WORKER_PORT=str(port),
        LORA_ALLOW_LOOPBACK="true",
    )
    url = f"http://127.0.0.1:{port}"
    try:
        process.wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200, 240)
        yield url
    finally:
        process.stop()


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server that checks signatures and their expiry; the settings that name it."""
    port = free_port()
    data = folder / "s3"
    (data / BUCKET).mkdir(parents=True)
    process = Process(
        [
            *(sys.executable, "-m", "nanio", "serve", "--data-dir", str(data)),
            *("--host", "127.0.0.1", "--port", str(port), "--region", "auto"),
        ],
        folder / "s3.log",
        cwd=folder,
        NANIO_ACCESS_KEY=ACCESS_KEY,
        NANIO_SECRET_KEY=SECRET_KEY,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        process.wait_until(lambda: httpx2.get(url).status_code > 0, 60)
        yield {
            "R2_ENDPOINT_URL": url,
            "R2_ACCESS_KEY_ID": ACCESS_KEY,
            "R2_SECRET_ACCESS_KEY": SECRET_KEY,
            "R2_BUCKET_NAME": BUCKET,
        }
    finally:
        process.stop()
