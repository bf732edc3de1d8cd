"""What becomes of contents when a process stops, freezes or loses its database."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import httpx2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Index, text

from app.core.db import migrate
from app.core.embedded_postgres import EmbeddedPostgres
from app.core.settings import Settings
from app.main import create_app
from app.models import Base
from app.startup import Prepared
from sdxl_contract.errors import GenerationFailed
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble

pytestmark = pytest.mark.process


ASYNC = {"Prefer": "respond-async"}


async def ended(backend: Backend, content_id: str, seconds: float = 15) -> dict[str, Any]:
    """The content once it has ended."""
    for _ in range(int(seconds / 0.05)):
        content: dict[str, Any] = (await backend.http.get(f"/api/v1/content/{content_id}")).json()
        if content["status"] not in ("queued", "running"):
            return content
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {content['status']}")


async def started(inference: InferenceDouble) -> None:
    """Return when the double has been asked."""
    while not inference.requests:
        await asyncio.sleep(0.02)


async def sql(backend: Backend, statement: str) -> Any:
    async with backend.app.state.services.database.session() as session:
        return (await session.execute(text(statement))).mappings().all()


async def test_a_stopped_server_draws_the_same_picture_after_its_next_start(
    start_backend: StartBackend,
) -> None:
    first, second = InferenceDouble(), InferenceDouble()
    first.gate.clear()
    async with start_backend(inference=first) as backend:
        content = await backend.generate(expected=202, headers=ASYNC)
        await started(first)
    async with start_backend(inference=second) as backend:
        done = await ended(backend, content["id"])
        rows = await sql(backend, "SELECT attempt FROM generation")
    assert done["status"] == "succeeded"
    assert second.requests[0] == first.requests[0]
    assert rows == [{"attempt": 2}]


async def test_a_frozen_servers_job_is_taken_over_and_it_loses_when_it_wakes(
    start_backend: StartBackend,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def silent(*_: Any) -> None:
        return None

    frozen, healthy = InferenceDouble(), InferenceDouble()
    frozen.gate.clear()
    async with start_backend(inference=frozen) as first:
        queue = first.app.state.services.queue
        monkeypatch.setattr(queue, "rescue", silent)
        monkeypatch.setattr(queue._app.job_manager, "update_heartbeat", silent)
        content = await first.generate(expected=202, headers=ASYNC)
        await started(frozen)
        await asyncio.sleep(1.2)  # longer than its lease
        async with start_backend(inference=healthy) as second:
            done = await ended(second, content["id"])
            assert done["status"] == "succeeded"
            frozen.gate.set()
            folder = settings.data_dir / "objects/owners/local/images" / content["id"]
            # It hears that it is too late from the database, or from the queue: whoever is first.
            signs = ("attempt 1 came too late", "the job runner failed")
            for _ in range(1000):
                if any(sign in caplog.text for sign in signs):
                    break
                await asyncio.sleep(0.1)
            assert any(sign in caplog.text for sign in signs)
            # On a busy machine the healthy one may need a third attempt.
            assert "1-" not in {path.name[:2] for path in folder.iterdir()}
            again = await ended(second, content["id"])
            assert again["images"][0]["sha256"] == done["images"][0]["sha256"]
            assert (await second.http.get(again["image_url"])).status_code == 200


async def test_pictures_of_an_attempt_that_died_are_removed_by_the_next(
    start_backend: StartBackend, settings: Settings
) -> None:
    first = InferenceDouble()
    first.gate.clear()
    async with start_backend(inference=first) as backend:
        content = await backend.generate(expected=202, headers=ASYNC)
        await started(first)
    folder = settings.data_dir / "objects/owners/local/images" / content["id"]
    folder.mkdir(parents=True)
    (folder / "1-0-abcdef01.png").write_bytes(b"stored, but no row names it")
    async with start_backend(inference=InferenceDouble()) as backend:
        done = await ended(backend, content["id"])
        assert (await backend.http.get(done["image_url"])).status_code == 200
    assert {path.name[:2] for path in folder.iterdir()} == {"2-"}


async def test_row_and_job_are_written_together_or_not_at_all(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(backend.app.state.services.queue, "defer", fail)
    await backend.generate(expected=500)
    assert await sql(backend, "SELECT id FROM generation") == []
    assert (
        await sql(backend, "SELECT id FROM procrastinate_jobs WHERE queue_name = 'content'") == []
    )


async def test_a_content_whose_job_is_gone_gets_a_new_one(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    async with start_backend() as backend:
        content = await backend.generate(expected=202, headers=ASYNC)
        await started(inference)
        await sql_delete_jobs(backend)
        inference.gate.set()
    async with start_backend() as backend:
        assert (await ended(backend, content["id"]))["status"] == "succeeded"


async def sql_delete_jobs(backend: Backend) -> None:
    async with backend.app.state.services.database.session() as session:
        await session.execute(text("DELETE FROM procrastinate_jobs"))


async def test_a_job_that_was_interrupted_too_often_fails(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    async with start_backend() as backend:
        content = await backend.generate(expected=202, headers=ASYNC)
        await started(inference)
    async with start_backend(job_max_attempts=1) as backend:
        done = await ended(backend, content["id"])
    assert done["error"] == {
        "code": "GENERATION_FAILED",
        "message": "given up after 1 attempts that were interrupted",
    }


async def test_finished_jobs_leave_nothing_in_the_queue(backend: Backend) -> None:
    await asyncio.gather(*(backend.generate(prompt=f"n {n}") for n in range(6)))
    for _ in range(1000):
        if not await sql(backend, "SELECT id FROM procrastinate_jobs WHERE queue_name = 'content'"):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("jobs are left in the queue")


async def test_a_lost_database_is_a_503_and_comes_back(settings: Settings) -> None:
    folder = Path(tempfile.mkdtemp(prefix="backend-tests-"))
    server = EmbeddedPostgres(folder / "postgres")
    url = server.start().set(drivername="postgresql+psycopg")
    try:
        await asyncio.to_thread(migrate, url)
        inference = InferenceDouble()
        app = create_app(settings, Prepared(url), inference=inference)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app, raise_app_exceptions=False),
                base_url="http://127.0.0.1:8000",
                timeout=60,
            ) as http,
        ):
            backend = Backend(app, http)
            await backend.generate()
            inference.gate.clear()
            running = await backend.generate(expected=202, headers=ASYNC)
            await asyncio.to_thread(server.shut_down)
            inference.gate.set()  # this one's end cannot be written now
            problem = await backend.generate(expected=503)
            assert problem["error_code"] == "DATABASE_UNAVAILABLE"
            assert (await http.get("/health/ready")).status_code == 503
            assert (await http.get("/health/live")).status_code == 200
            await asyncio.to_thread(server.ensure_running)
            assert (await backend.generate())["status"] == "succeeded"
            assert (await ended(backend, running["id"]))["status"] == "succeeded"
            assert (await http.get("/health/ready")).status_code == 200
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def test_a_message_that_the_database_cannot_hold_is_cleaned(
    backend: Backend, inference: InferenceDouble
) -> None:
    inference.failures.append(GenerationFailed("a\x00b\ud800c"))
    content = await backend.generate()
    assert content["error"] == {"code": "GENERATION_FAILED", "message": "ab?c"}


async def test_the_migrations_make_exactly_the_tables_of_the_models(backend: Backend) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection)
        return [
            change
            for change in compare_metadata(context, Base.metadata)
            if not getattr(change[-1], "name", "").startswith("procrastinate_")
            and not (
                isinstance(change[-1], Index)
                and change[-1].table is not None
                and change[-1].table.name.startswith("procrastinate_")
            )
        ]

    async with backend.app.state.services.database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_server_that_is_stopped_while_it_starts_does_stop(
    start_backend: StartBackend,
) -> None:
    for turn in range(6):
        async with asyncio.timeout(30), start_backend():
            for _ in range(turn):
                await asyncio.sleep(0)


async def test_a_cancellation_that_a_runner_swallows_is_repeated(
    start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    swallowed: list[str] = []

    async def run(**options: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.extend(options["queues"])

    async with asyncio.timeout(30):
        async with start_backend() as backend:
            queue = backend.app.state.services.queue
            monkeypatch.setattr(queue._app, "run_worker_async", run)
            for task in (queue._runner, queue._chore_runner):
                task.cancel()
            queue._runner = asyncio.create_task(queue._run_for_ever("content", 1))
            queue._chore_runner = asyncio.create_task(queue._run_for_ever("chores", 1))
            await asyncio.sleep(0.1)
    assert sorted(swallowed) == ["chores", "content"]


async def test_an_unknown_job_does_no_harm(backend: Backend) -> None:
    queue = backend.app.state.services.queue
    await queue._task.defer_async(content_id=str(uuid.uuid4()))
    assert (await backend.generate())["status"] == "succeeded"
