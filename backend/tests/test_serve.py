"""`python -m app.serve` and `python -m app.cli` as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from app.core.db import migrate
from app.core.embedded_postgres import DatabaseError
from app.core.settings import load_settings
from app.serve import explain, main, serve
from app.startup import Prepared
from testkit.processes import BACKEND, Process, backend_process, free_port

slow = pytest.mark.slow


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
        BACKEND,
        **{"DATA_DIR": str(folder / "data"), **environment},
    )
    assert process.popen.wait(90) == 1, process.output()
    assert "Traceback" not in process.output()
    return process.output()


@slow
@pytest.mark.long
def test_a_database_that_is_down_or_a_wrong_setting_is_explained(folder: Path) -> None:
    url = f"postgresql://me:s3cret@127.0.0.1:{free_port()}/x"
    said = refusal(folder, DATABASE_URL=url)
    assert "cannot be reached" in said
    assert "s3cret" not in said
    assert "PORT" in refusal(folder, PORT="0")


@slow
@pytest.mark.long
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
        **quick,
    ) as process:
        content = httpx2.post(
            f"{url}/generate",
            json={"prompt": "x", "deadline_seconds": 20},
            headers={"Prefer": "wait=1"},
            timeout=60,
        ).json()
        assert content["status"] == "queued"
        assert content["waiting_for"]["reason"] == "worker_unreachable"
        process.kill()
    assert "no API key exists" in refusal(folder, DATA_DIR=str(data), HOST="0.0.0.0")
    with backend_process(data, port, MODAL_ENDPOINT_URL=nobody, **quick) as process:
        deadline = time.monotonic() + 60
        while content["status"] == "queued" and time.monotonic() < deadline:
            time.sleep(0.2)
            content = httpx2.get(f"{url}/{content['id']}", timeout=30).json()
        assert content["status"] == "failed"
        assert content["error"]["code"] == "TIMEOUT"
        assert "cannot be reached" in content["error"]["message"]
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


@slow
def test_who_waits_is_answered_when_the_server_stops(folder: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/v1/content"
    nobody = f"http://127.0.0.1:{free_port()}/generate-image"
    asked: dict[str, Any] = {"json": {"prompt": "x"}, "timeout": 60}
    with (
        backend_process(folder / "data", port, MODAL_ENDPOINT_URL=nobody) as process,
        ThreadPoolExecutor() as pool,
    ):
        queued = httpx2.post(f"{url}/generate", headers={"Prefer": "respond-async"}, **asked).json()
        told = pool.submit(httpx2.get, f"{url}/{queued['id']}/events", timeout=60)
        waits = pool.submit(httpx2.post, f"{url}/generate", headers={"Prefer": "wait=50"}, **asked)
        while len(httpx2.get(url, timeout=30).json()["items"]) < 2:
            time.sleep(0.05)
        time.sleep(0.5)  # both wait by then
        assert process.stop() == 0

        assert waits.result().status_code == 202
        assert waits.result().json()["status"] == "queued"
        assert "event: queued" in told.result().text


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"port": 0}, "PORT"),
        ({"r2_bucket_name": "x"}, "R2_ENDPOINT_URL"),
        ({"lora_provider": "replicate"}, "REPLICATE_API_TOKEN"),
        ({"lora_provider": "other"}, "LORA_PROVIDER"),
        ({"modal_endpoint_url": "worker.example"}, "MODAL_ENDPOINT_URL"),
        ({"job_heartbeat_seconds": 9}, "JOB_STALLED_SECONDS"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], names: str) -> None:
    with pytest.raises(ValidationError) as caught:
        load_settings(**changes)
    assert names in explain(caught.value)


def test_empty_is_unset_and_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_TIMEOUT_SECONDS", "")
    monkeypatch.setenv("MODAL_API_TOKEN", "s3cret")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:s3cret@host/x")
    settings = load_settings()
    assert settings.modal_timeout_seconds == 300
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("endpoint", "public", "warns"),
    [
        ("https://x.modal.run/generate-image", None, True),
        ("https://x.modal.run/generate-image", "https://me.example", False),
        ("http://127.0.0.1:8001/generate-image", None, False),
        (None, None, False),
    ],
)
def test_loras_that_a_remote_worker_cannot_fetch_are_noticed(
    endpoint: str | None, public: str | None, warns: bool
) -> None:
    settings = load_settings(modal_endpoint_url=endpoint, public_base_url=public)
    assert settings.worker_cannot_fetch is warns


@pytest.mark.parametrize(
    ("host", "loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:8000"),
        ("::1", True, "http://[::1]:8000"),
        ("localhost", True, "http://localhost:8000"),
        ("0.0.0.0", False, "http://127.0.0.1:8000"),
        ("192.168.1.5", False, "http://192.168.1.5:8000"),
    ],
)
def test_the_address_says_who_can_reach_the_server(host: str, loopback: bool, url: str) -> None:
    settings = load_settings(host=host)
    assert (settings.is_loopback, settings.base_url) == (loopback, url)


def test_a_database_that_dies_during_the_start_is_a_sentence_and_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = make_url(f"postgresql+psycopg://me:s3cret@127.0.0.1:{free_port()}/x")
    settings = load_settings(data_dir=tmp_path, port=free_port())
    assert serve(settings, Prepared(gone)) == 1
    said = capfd.readouterr().err
    assert "The backend does not start: the database went away" in said
    assert "Traceback" not in said
    assert "s3cret" not in said


def test_a_place_that_cannot_hold_data_is_a_sentence_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "umask", lambda _: 0)
    for name in ("configure_logging", "configure_tracing"):
        monkeypatch.setattr(f"app.serve.{name}", lambda _: None)
    assert main() == 1
    assert "File exists" in capfd.readouterr().err


def test_an_option_of_another_client_in_the_database_s_url_is_named() -> None:
    with pytest.raises(DatabaseError, match="option after its \\?"):
        migrate(make_url("postgresql+psycopg://me:s3cret@127.0.0.1:1/x?pgbouncer=true"))
