"""kill -9 at each step of a job's life: it ends once, with its pictures and nothing beside them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL

from app.core.settings import Settings
from testkit.backend import StartBackend, ended
from testkit.dies_at_a_step import BODY, KEY, STEPS

REPOSITORY = Path(__file__).resolve().parents[3]
CONTENT = "/api/v1/content"
# The two at which most is at stake: `make test` kills there, `make test-all` at each step.
OFTEN = ("while the worker draws", "after the end is written")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "step",
    [step if step in OFTEN else pytest.param(step, marks=pytest.mark.long) for step in STEPS],
)
async def test_a_job_ends_once_wherever_its_server_was_killed(
    start_backend: StartBackend, settings: Settings, database_url: URL, step: str
) -> None:
    database = database_url.render_as_string(hide_password=False)
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "testkit.dies_at_a_step", step],
        cwd=REPOSITORY,
        env={**os.environ, "DATABASE_URL": database, "DATA_DIR": str(settings.data_dir)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]

    async with start_backend() as backend:
        # As a client does that lost its answer.
        again = await backend.http.post(f"{CONTENT}/generate", json=BODY, headers=KEY)
        assert again.status_code in (200, 202), again.text
        content = await ended(backend, again.json()["id"])
        assert content["status"] == "succeeded"
        page = (await backend.http.get(CONTENT)).json()["items"]
        assert [one["id"] for one in page] == [content["id"]]

        storage = backend.app.state.services.storage
        assert len(content["images"]) == BODY["num_images"]
        for image in content["images"]:
            picture = await backend.http.get(image["url"])
            assert hashlib.sha256(picture.content).hexdigest() == image["file_sha256"]
        stored = await storage.keys(f"owners/local/images/{content['id']}")
        assert len(stored) == 2 * BODY["num_images"]  # each with its thumbnail

        plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            waiters = "SELECT count(*) FROM generation_event WHERE type = 'succeeded'"
            assert connection.execute(waiters).fetchone() == (1,)
            jobs = "SELECT count(*) FROM procrastinate_jobs WHERE queue_name = 'content'"
            while connection.execute(jobs).fetchone() != (0,):
                await asyncio.sleep(0.1)  # a dead server's job is taken over, and found done
