"""The clients that people have, as processes of their own, and the real stack that they call."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.clients.stack import (
    HERE,
    LORA,
    MODEL,
    SCALE,
    WANTED,
    Drive,
    Stack,
    Told,
    pixels_of,
    with_a_picture,
)
from testkit.processes import backend_process, free_port, worker_process


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Backend, PostgreSQL and worker with the small SDXL, as `make serve` runs them."""
    # Not below pytest's folder: PostgreSQL runs as another user where tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="client-tests-"))
    port = free_port()
    try:
        with (
            worker_process(folder, MODEL) as worker,
            backend_process(
                folder / "data",
                port,
                MODAL_ENDPOINT_URL=f"{worker}/generate-image",
                WEBHOOK_ALLOW_LOOPBACK="true",
                JOB_CONCURRENCY="2",
            ),
        ):
            yield with_a_picture(f"http://127.0.0.1:{port}", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def drive(stack: Stack) -> Drive:
    """Runs a client's script against the stack."""

    def run(*command: str, **environment: str) -> Told:
        done = subprocess.run(
            command,
            cwd=HERE,
            env={
                **os.environ,
                "SDXL_URL": stack.url,
                "SDXL_KEY": stack.key,
                "WANTED": json.dumps({**WANTED, "lora": LORA, "scale": SCALE}),
                "PYTHONPATH": str(HERE / "python"),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {(done.stdout + done.stderr)[-4000:]}"
        told = json.loads(done.stdout.splitlines()[-1])
        pictures = [pixels_of(base64.b64decode(picture)) for picture in told.pop("pictures", [])]
        return Told(pictures, told)

    return run
