"""A real PostgreSQL for the session, a fresh database for each test, and the app on it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import URL

    from app.core.settings import Settings
    from app.services.storage import Storage
    from testkit.backend import Backend, StartBackend
    from testkit.databases import EmptyDatabases
    from testkit.doubles.inference_double import InferenceDouble


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A PostgreSQL server."""
    import psycopg

    from app.core.embedded_postgres import EmbeddedPostgres
    from testkit.databases import plain

    # Not below pytest's folder: PostgreSQL runs as another user where tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="backend-tests-"))
    server = EmbeddedPostgres(folder / "postgres")
    url = server.start().set(drivername="postgresql+psycopg")
    # What is here need not outlive the computer; a killed server loses nothing all the same.
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")
    yield url
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def databases(postgres: URL) -> Iterator[EmptyDatabases]:
    """Lends databases with the schema and nothing in them."""
    from testkit.databases import EmptyDatabases

    with EmptyDatabases(postgres) as databases:
        yield databases


@pytest.fixture
def database_url(databases: EmptyDatabases) -> Iterator[URL]:
    """An empty database with the schema."""
    with databases.lend() as url:
        yield url


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.core.settings import Settings

    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Quick ones, so that nothing waits for long."""
    from app.core.settings import load_settings

    return load_settings(
        data_dir=tmp_path / "data",
        sync_wait_seconds=20,
        shutdown_grace_seconds=0.2,
        job_heartbeat_seconds=0.2,
        job_stalled_seconds=1.0,
        model_refresh_seconds=60,
    )


@pytest.fixture
def inference() -> InferenceDouble:
    from testkit.doubles.inference_double import InferenceDouble

    return InferenceDouble()


@pytest.fixture
def start_backend(
    settings: Settings, database_url: URL, inference: InferenceDouble
) -> StartBackend:
    """Starts an app; several may run on the same database."""
    import httpx2

    from app.main import create_app
    from app.startup import Prepared
    from testkit.backend import BASE_URL, Backend

    @contextlib.asynccontextmanager
    async def start(
        *,
        storage: Storage | None = None,
        database: URL | None = None,
        inference: InferenceDouble = inference,
        **changes: Any,
    ) -> AsyncIterator[Backend]:
        app = create_app(
            settings.model_copy(update=changes),
            Prepared(database or database_url),
            inference=inference,
            storage=storage,
        )
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url=BASE_URL, timeout=60) as http,
        ):
            yield Backend(app, http)

    return start


@pytest.fixture
async def backend(start_backend: StartBackend) -> AsyncIterator[Backend]:
    async with start_backend() as running:
        yield running
