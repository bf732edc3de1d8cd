"""The processes of a chaos run: PostgreSQL, an S3 server, a worker double, two backends.

Duty: start, kill, freeze and restart each of them. All of it lies in one temporary folder.
Must not know: what is asked of the backends, and what must come of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from app.core.db import migrate
from app.core.embedded_postgres import EmbeddedPostgres
from app.core.settings import Settings, load_settings
from scripts.stack import LOOPBACK, REPOSITORY, Service, StackError, free_port, port_is_taken

LEASE_SECONDS = 2.0
JOB_CONCURRENCY = 4  # contents that a backend holds at a time
PICTURE_SIDE = 264  # px; larger than a thumbnail, so that every picture has one
_BUCKET, _ACCESS_KEY, _SECRET_KEY = "pictures", "chaos-access", "chaos-secret-key"


class Scene:
    """Everything that runs. Use `scene()`."""

    def __init__(
        self, folder: Path, behaviours: Mapping[str, float], worker_seconds: float, seed: int
    ) -> None:
        self.folder = folder
        self._postgres = EmbeddedPostgres(folder / "postgres")
        self.url = self._postgres.start()
        migrate(self.url.set(drivername="postgresql+psycopg"))
        s3_port, worker_port = free_port(), free_port()
        self._s3_port = s3_port
        (folder / "s3" / _BUCKET).mkdir(parents=True)
        self.s3 = Service(
            name="S3 server",
            command=[
                *(sys.executable, "-m", "nanio", "serve", "--data-dir", str(folder / "s3")),
                *("--host", LOOPBACK, "--port", str(s3_port), "--region", "auto"),
            ],
            folder=folder,
            environment={"NANIO_ACCESS_KEY": _ACCESS_KEY, "NANIO_SECRET_KEY": _SECRET_KEY},
            ready_url=f"http://{LOOPBACK}:{s3_port}",
            log=folder / "s3.log",
        )
        self.worker = Service(
            name="worker double",
            command=[sys.executable, "-m", "chaos.worker_double"],
            folder=REPOSITORY,
            environment={
                "DOUBLE_PORT": str(worker_port),
                "DOUBLE_SECONDS": str(worker_seconds),
                "DOUBLE_BEHAVIOURS": json.dumps(dict(behaviours)),
                "DOUBLE_SEED": str(seed),
                "DOUBLE_SIDE": str(PICTURE_SIDE),
            },
            ready_url=f"http://{LOOPBACK}:{worker_port}/health",
            log=folder / "worker.log",
        )
        self.environment = {
            "DATABASE_URL": self.url.set(drivername="postgresql").render_as_string(False),
            "DATA_DIR": str(folder / "data"),
            "R2_ENDPOINT_URL": f"http://{LOOPBACK}:{s3_port}",
            "R2_ACCESS_KEY_ID": _ACCESS_KEY,
            "R2_SECRET_ACCESS_KEY": _SECRET_KEY,
            "R2_BUCKET_NAME": _BUCKET,
            "MODAL_ENDPOINT_URL": f"http://{LOOPBACK}:{worker_port}/generate-image",
            "MODAL_MAX_RETRIES": "6",
            "MODAL_RETRY_BACKOFF_BASE": "0.2",
            "MODAL_TIMEOUT_SECONDS": "60",
            "LORA_URL_SECONDS": "2",
            "JOB_CONCURRENCY": str(JOB_CONCURRENCY),
            "JOB_HEARTBEAT_SECONDS": "0.4",
            "JOB_STALLED_SECONDS": str(LEASE_SECONDS),
            "JOB_MAX_ATTEMPTS": "30",
            "SHUTDOWN_GRACE_SECONDS": "0.5",
            "MODEL_REFRESH_SECONDS": "5",
        }
        self.backends = [self._backend(number) for number in range(2)]

    def _backend(self, number: int) -> Service:
        port = free_port()
        return Service(
            name=f"backend {number}",
            command=[sys.executable, "-m", "app.serve"],
            folder=REPOSITORY / "backend",
            environment={**self.environment, "PORT": str(port), "HOST": LOOPBACK},
            ready_url=f"http://{LOOPBACK}:{port}/health/ready",
            log=self.folder / f"backend-{number}.log",
        )

    def settings(self) -> Settings:
        """The backends' own, for looking at their database and bucket."""
        names = {name.lower(): value for name, value in self.environment.items()}
        return load_settings(**names)

    def backend_url(self, number: int) -> str:
        """Where a backend listens."""
        return self.backends[number].ready_url.removesuffix("/health/ready")

    def start(self) -> None:
        """Start everything that does not run yet and wait until all is ready."""
        for service in (self.s3, self.worker, *self.backends):
            service.start()
        for service in (self.s3, self.worker, *self.backends):
            self._wait(service)

    def take_the_fence_out(self) -> None:
        """Start both backends anew, without the fence: the control."""
        for backend in self.backends:
            backend.stop()
            backend.command[:] = [sys.executable, "-m", "chaos.unfenced_backend"]
            backend.environment = {**backend.environment, "PYTHONPATH": str(REPOSITORY)}
            backend.start()
        for backend in self.backends:
            self._wait(backend)

    def kill(self, service: Service) -> None:
        """kill -9."""
        assert service.process is not None
        service.process.kill()
        service.process.wait()
        service.stop()

    def restart(self, service: Service, away_seconds: float = 0.0) -> None:
        """kill -9, and start it again after a while."""
        self.kill(service)
        time.sleep(away_seconds)
        self.start_again(service)

    def start_again(self, service: Service) -> None:
        """Start what was killed, and wait until it is ready."""
        service.start()
        self._wait(service)

    def freeze(self, service: Service) -> None:
        """SIGSTOP: it holds its connections and does nothing."""
        assert service.process is not None
        os.kill(service.process.pid, signal.SIGSTOP)

    def thaw(self, service: Service) -> None:
        """SIGCONT: it goes on as if no time had passed."""
        assert service.process is not None
        os.kill(service.process.pid, signal.SIGCONT)

    def crash_postgres(self, away_seconds: float) -> None:
        """Stop PostgreSQL at once, as a crash would, and let it recover after a while."""
        pid = self._postgres.pid
        assert pid is not None
        process = psutil.Process(pid)
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(20)
        time.sleep(away_seconds)
        self._postgres.ensure_running()

    def _wait(self, service: Service) -> None:
        if service is not self.s3:
            service.wait_ready(120)
            return
        # It answers only what is signed: that it listens must do.
        deadline = time.monotonic() + 60
        while not port_is_taken(self._s3_port):
            if time.monotonic() > deadline or not service.is_running():
                raise StackError("the S3 server did not come up")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop everything, frozen or not."""
        for service in (*self.backends, self.worker, self.s3):
            if service.is_running():
                self.thaw(service)
            service.stop(grace_s=10)
        self._postgres.stop()


@contextlib.contextmanager
def scene(
    behaviours: Mapping[str, float], *, worker_seconds: float = 0.2, seed: int = 1
) -> Iterator[Scene]:
    """A running scene; all of it is gone afterwards."""
    # PostgreSQL runs as another user where this runs as root: not below a private folder.
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    built: Scene | None = None
    try:
        built = Scene(folder, behaviours, worker_seconds, seed)
        built.start()
        yield built
    finally:
        if built is not None:
            built.stop()
        shutil.rmtree(folder, ignore_errors=True)
