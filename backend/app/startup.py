"""What must be true before the server listens: a database that is up to date, and a key if needed.

Duty: refuse to start with one sentence that says what to do. Must not know: services and routes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy import URL

from app.core.db import Database, database_url, migrate
from app.core.embedded_postgres import EmbeddedPostgres, make_private_folder
from app.core.settings import Settings
from app.repositories.access.api_keys import ApiKeyRepository


class StartRefused(RuntimeError):
    """The server must not start like this; the message says why and what to do."""


@dataclass(frozen=True)
class Prepared:
    """A database with an up-to-date schema. `embedded` is the server's own PostgreSQL, if any."""

    url: URL
    embedded: EmbeddedPostgres | None = None

    def revive(self) -> None:
        """Start the embedded PostgreSQL again where it has died."""
        if self.embedded is not None:
            self.embedded.ensure_running()

    def release(self) -> None:
        """Stop the embedded PostgreSQL, unless another process uses it."""
        if self.embedded is not None:
            self.embedded.stop()


def prepare(settings: Settings) -> Prepared:
    """Start or reach the database, migrate it, and check that the server may listen.

    Raises:
        DatabaseError: no usable database.
        StartRefused: others could reach the server, and no API key exists.
    """
    make_private_folder(settings.data_dir)
    embedded = None
    if settings.database_url is None:
        embedded = EmbeddedPostgres(settings.data_dir / "postgres")
    prepared = Prepared(database_url(settings, embedded), embedded)
    try:
        migrate(prepared.url)
        if not settings.is_loopback and not asyncio.run(_any_key(prepared.url)):
            raise StartRefused(
                f"HOST={settings.host} can be reached by others, and no API key exists: make one "
                "with `python -m app.cli create-key`, or set HOST=127.0.0.1"
            )
    except BaseException:
        prepared.release()
        raise
    return prepared


async def _any_key(url: URL) -> bool:
    database = Database(url)
    try:
        async with database.session() as session:
            return await ApiKeyRepository(session).any_active()
    finally:
        await database.close()
