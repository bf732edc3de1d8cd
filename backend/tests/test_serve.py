"""`python -m app.serve` and `python -m app.cli` as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from processes import BACKEND, Process, backend_process, free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's folder: PostgreSQL runs as another user where tests run as root."""
    with tempfile.TemporaryDirectory(prefix="backend-tests-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def refusal(folder: Path, **environment: str) -> str:
    """What a server says that does not start."""
    process = Process(
        [sys.executable, "-m", "app.serve"],
        folder / "refused.log",
        **{"DATA_DIR": str(folder / "data"), **environment},
    )
    assert process.popen.wait(90) == 1, process.output()
    assert "Traceback" not in process.output()
    return process.output()


def test_a_database_that_is_down_or_a_wrong_setting_is_explained(folder: Path) -> None:
    url = f"postgresql://me:s3cret@127.0.0.1:{free_port()}/x"
    said = refusal(folder, DATABASE_URL=url)
    assert "cannot be reached" in said
    assert "s3cret" not in said
    assert "PORT" in refusal(folder, PORT="0")
    assert "R2_ENDPOINT_URL" in refusal(folder, R2_BUCKET_NAME="x")


def test_a_job_survives_kill_9_and_keys_guard_other_addresses(folder: Path) -> None:
    data = folder / "data"
    port = free_port()
    nobody = f"http://127.0.0.1:{free_port()}/generate-image"
    url = f"http://127.0.0.1:{port}/api/v1/content"
    quick = {"JOB_HEARTBEAT_SECONDS": "0.5", "JOB_STALLED_SECONDS": "1.5"}
    with backend_process(
        data,
        port,
        MODAL_ENDPOINT_URL=nobody,
        MODAL_RETRY_BACKOFF_BASE="30",
        **quick,
    ) as process:
        content = httpx2.post(
            f"{url}/generate", json={"prompt": "x"}, headers={"Prefer": "wait=2"}, timeout=60
        ).json()
        assert content["status"] == "running"
        process.kill()
    assert "no API key exists" in refusal(folder, DATA_DIR=str(data), HOST="0.0.0.0")
    with backend_process(
        data, port, MODAL_ENDPOINT_URL=nobody, MODAL_MAX_RETRIES="0", **quick
    ) as process:
        deadline = time.monotonic() + 60
        while content["status"] == "running" and time.monotonic() < deadline:
            time.sleep(0.2)
            content = httpx2.get(f"{url}/{content['id']}", timeout=30).json()
        assert content["status"] == "failed"
        assert content["error"]["code"] == "MODEL_LOAD_FAILED"
        made = subprocess.run(
            [sys.executable, "-m", "app.cli", "create-key"],
            cwd=BACKEND,
            env={**os.environ, "DATA_DIR": str(data)},
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        key = made.stdout.strip()
        assert httpx2.get(url, timeout=30).status_code == 401
        answer = httpx2.get(url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        assert len(answer.json()["items"]) == 1
        assert process.stop() == 0
    lines = [line for line in process.output().splitlines() if line.startswith("{")]
    assert not (data / "postgres" / "postmaster.pid").exists()  # stopped, in spite of the kill -9
    assert all("event" in json.loads(line) for line in lines)
    assert key not in process.output()
