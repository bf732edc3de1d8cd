"""Upgrades without downtime: versions side by side on one schema."""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy import URL, text

from app.core.db import Database, migrate
from testkit.backend import StartBackend
from testkit.processes import BACKEND


async def test_a_version_runs_on_a_schema_that_a_later_one_has_migrated(
    start_backend: StartBackend, database_url: URL
) -> None:
    database = Database(database_url)
    async with database.session() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await session.execute(text("ALTER TABLE generation ADD COLUMN from_later text"))
    await asyncio.to_thread(migrate, database_url)
    async with start_backend() as backend:
        assert (await backend.generate())["status"] == "succeeded"
    async with database.session() as session:
        assert await session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    await database.close()


async def test_versions_that_start_together_migrate_once(database_url: URL) -> None:
    database = Database(database_url)
    async with database.session() as session:
        await session.execute(text("DROP SCHEMA public CASCADE"))
        await session.execute(text("CREATE SCHEMA public"))
    plain = database_url.render_as_string(hide_password=False)
    code = "import sys; from app.core.db import migrate, make_url; migrate(make_url(sys.argv[1]))"
    together = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", code, plain, cwd=BACKEND)
        for _ in range(2)
    ]
    assert [await process.wait() for process in together] == [0, 0]
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM alembic_version")) == 1
        assert await session.scalar(text("SELECT count(*) FROM generation")) == 0
    await database.close()
