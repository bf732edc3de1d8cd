"""The database: embedded PostgreSQL or yours, its engine, and its migrations.

Duty: hand out sessions on a schema that is up to date.
Must not know: any table.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import procrastinate.exceptions
import psycopg
import psycopg_pool
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.rows import dict_row, scalar_row
from sqlalchemy import URL, Connection, create_engine, exc, make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from app.core.embedded_postgres import DatabaseError, EmbeddedPostgres
from app.core.settings import Settings

_MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_DRIVER = "postgresql+psycopg"
_CONNECT_SECONDS = 5
_PING_AFTER_SECONDS = 1.0

# What a lost or unreachable database looks like, whoever was talking to it.
DATABASE_LOST = (
    exc.OperationalError,
    exc.InterfaceError,
    exc.TimeoutError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg_pool.PoolTimeout,
    psycopg_pool.PoolClosed,
    procrastinate.exceptions.ConnectorException,
)

DriverConnection = psycopg.AsyncConnection[Any]

log = logging.getLogger(__name__)


class DriverPool(psycopg_pool.AsyncConnectionPool[DriverConnection]):
    """Connections that come back even where whoever had one is cancelled while he gives it back.

    The library's pool waits for its lock there, and a cancellation in that moment loses the
    connection for good: after as many of them as the pool is large, nobody gets one any more.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._coming_back: set[asyncio.Task[None]] = set()

    async def putconn(self, conn: DriverConnection) -> None:
        """Take a connection back."""
        task = asyncio.create_task(super().putconn(conn), name="connection given back")
        self._coming_back.add(task)
        task.add_done_callback(self._coming_back.discard)
        await asyncio.shield(task)


def database_url(settings: Settings, embedded: EmbeddedPostgres | None) -> URL:
    """Where the database is, in SQLAlchemy's spelling for psycopg 3."""
    if embedded is not None:
        return embedded.start().set(drivername=_DRIVER)
    assert settings.database_url is not None
    try:
        url = make_url(settings.database_url.get_secret_value())
    except exc.ArgumentError as error:
        raise DatabaseError("DATABASE_URL is not a URL like postgresql://user@host/name") from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise DatabaseError("DATABASE_URL must start with postgresql://")
    return url.set(drivername=_DRIVER)


def migrate(url: URL, revision: str = "head") -> None:
    """Bring the schema up to date; several servers may do so at once.

    Args:
        revision: where to stop, for tests of upgrades.

    Raises:
        DatabaseError: the database cannot be reached.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    engine = create_engine(url, connect_args={"connect_timeout": _CONNECT_SECONDS})
    try:
        with engine.connect() as connection:
            if _is_newer(connection, config):
                log.warning("the database's schema is a later version's; it is left as it is")
                return
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except (exc.OperationalError, exc.InterfaceError) as error:
        raise DatabaseError(
            f"the database at {_shown(url)} cannot be reached, or went away: is PostgreSQL running "
            "there, and are DATABASE_URL's user and password right?"
        ) from error
    except exc.ProgrammingError as error:
        # Raised by libpq before it connects: an option of another client's (`?pgbouncer=true`).
        if "connection option" in str(error.orig) or "URI query parameter" in str(error.orig):
            raise DatabaseError(
                "DATABASE_URL holds an option after its ? that PostgreSQL's own client does not "
                "know: leave it out"
            ) from error
        raise
    finally:
        engine.dispose()


def _is_newer(connection: Connection, config: Config) -> bool:
    """Whether a later version has migrated: its migrations only add, so this one can run on."""
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    heads = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()
    return not known.issuperset(heads)


def _shown(url: URL) -> str:
    return f"{url.host or 'a local socket'}{f':{url.port}' if url.port else ''}/{url.database}"


class Database:
    """The engine and its sessions, for one running server."""

    def __init__(self, url: URL, *, pool_size: int = 10) -> None:
        self.url = url
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size // 2,
            max_overflow=pool_size - pool_size // 2,
            pool_timeout=_CONNECT_SECONDS,
            connect_args={"connect_timeout": _CONNECT_SECONDS},
            pool_pre_ping=True,
            hide_parameters=True,
        )
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._readers = async_sessionmaker(
            self.engine.execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False
        )
        self._snapshots = async_sessionmaker(
            self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            ),
            expire_on_commit=False,
        )
        self._direct_size = pool_size
        self._direct: DriverPool | None = None
        self._lost_at = float("-inf")

    @property
    def conninfo(self) -> str:
        """The same place, as libpq spells it."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed at the end, rolled back on an exception."""
        async with self._sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncSession]:
        """For reads by several statements, also those that load a row's others: of one moment."""
        async with self._snapshots() as session, session.begin():
            yield session

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """For single reads: each statement for itself, without the two messages of a transaction.

        Two reads may see different moments; what must belong together needs `snapshot`.
        """
        async with self._readers() as session:
            yield session

    @asynccontextmanager
    async def direct(self) -> AsyncIterator[DriverConnection]:
        """The driver itself, for the few statements that are on every picture's way.

        Each is a transaction of its own, unless within `connection.transaction()`. The same
        statement through a session costs nine times the CPU (docs/decisions/0023).
        """
        if self._direct is None:
            self._direct = self.driver_pool(self._direct_size, timeout=_CONNECT_SECONDS)
        if self._direct.closed:
            await self._direct.open()
        try:
            # Not the pool's own context, which ends a transaction that there is not.
            connection = await self._direct.getconn()
            try:
                yield connection
            finally:
                await self._direct.putconn(connection)
        except psycopg.OperationalError:
            self._lost_at = time.monotonic()
            raise

    def driver_pool(self, max_size: int, *, timeout: float) -> DriverPool:
        """Connections without a session around them, each statement a transaction; not yet open.

        Args:
            timeout: seconds to wait for one that is free.
        """
        asked_at: weakref.WeakKeyDictionary[DriverConnection, float] = weakref.WeakKeyDictionary()

        async def check(connection: DriverConnection) -> None:
            now = time.monotonic()
            before = asked_at.get(connection, now)
            asked_at[connection] = now
            # Where one was lost, the others of before are dead too, most probably.
            if now - before < _PING_AFTER_SECONDS and before > self._lost_at:
                return
            try:
                await DriverPool.check_connection(connection)
            except psycopg.OperationalError:
                self._lost_at = now
                raise

        return DriverPool(
            self.conninfo,
            kwargs={"connect_timeout": _CONNECT_SECONDS},
            configure=_commit_each_statement,
            min_size=1,
            max_size=max_size,
            timeout=timeout,
            # A lost database is looked for again at the next call, not after a growing pause.
            reconnect_timeout=_CONNECT_SECONDS,
            check=check,
            open=False,
        )

    async def check(self) -> bool:
        """Whether the database answers within two seconds."""
        try:
            async with asyncio.timeout(2), self.engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (*DATABASE_LOST, TimeoutError, OSError):
            return False
        return True

    async def close(self) -> None:
        """Close every connection."""
        direct, self._direct = self._direct, None
        if direct is not None:
            await direct.close()
        await self.engine.dispose()


async def _commit_each_statement(connection: DriverConnection) -> None:
    await connection.set_autocommit(True)


async def driver_connection(session: AsyncSession) -> DriverConnection:
    """The driver's own connection of `session`'s transaction, for what is written past it."""
    raw = await (await session.connection()).get_raw_connection()
    connection = raw.driver_connection
    assert isinstance(connection, psycopg.AsyncConnection)
    return connection


async def fetch_rows(
    connection: DriverConnection, query: str, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every row, by the names of its columns. `query` holds no value of a caller's."""
    # As bytes: psycopg takes text only where it is a literal.
    async with connection.cursor(row_factory=dict_row) as cursor:
        return await (await cursor.execute(query.encode(), values)).fetchall()


async def fetch_value(connection: DriverConnection, query: str, values: Mapping[str, Any]) -> Any:
    """The first column of the first row; None where there is no row."""
    async with connection.cursor(row_factory=scalar_row) as cursor:
        return await (await cursor.execute(query.encode(), values)).fetchone()
