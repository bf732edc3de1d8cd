"""The driver's connections: none is lost, whenever whoever has one is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psycopg_pool
import pytest
from sqlalchemy import URL

from app.core.db import Database, DriverPool

ONE = "SELECT 1"


@pytest.fixture
async def database(database_url: URL) -> AsyncIterator[Database]:
    database = Database(database_url, pool_size=1)
    yield database
    await database.close()


async def cancelled_while_giving_back(pool: DriverPool) -> None:
    """Somebody has the pool's one connection, and is cancelled while he waits to give it back."""
    ready = asyncio.Event()

    async def use() -> None:
        async with pool.connection() as connection:
            await connection.execute(ONE)
            await pool._lock.acquire()  # as whoever takes or gives at this moment
            ready.set()

    task = asyncio.create_task(use())
    await ready.wait()
    await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    pool._lock.release()


async def test_a_connection_comes_back_from_who_is_cancelled_while_he_gives_it_back(
    database: Database,
) -> None:
    for _ in range(3):
        async with database.direct() as connection:
            await connection.execute(ONE)
        assert database._direct is not None
        await asyncio.wait_for(cancelled_while_giving_back(database._direct), 10)
    async with database.direct() as connection:
        await connection.execute(ONE)


async def test_the_librarys_own_pool_loses_it(database: Database) -> None:
    """Else the class above it is not needed any more."""
    pool = psycopg_pool.AsyncConnectionPool(database.conninfo, max_size=1, min_size=1, open=False)
    await pool.open()
    try:
        await asyncio.wait_for(cancelled_while_giving_back(pool), 10)  # type: ignore[arg-type]
        with pytest.raises(psycopg_pool.PoolTimeout):
            await pool.getconn(timeout=0.3)
    finally:
        await pool.close(timeout=1)
