"""Alembic's entry: runs the migrations on the connection that the server hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

import app.models  # noqa: F401  (fills the metadata)
from app.models.base import Base

# Any fixed number: servers that start together take turns.
_LOCK = 7_305_211_894


def _is_ours(name: str | None, kind: str) -> bool:
    return not (kind == "table" and (name or "").startswith("procrastinate_"))


def run(connection: Connection) -> None:
    """Migrate in one transaction, alone."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=lambda name, kind, _parents: _is_ours(name, kind),
    )
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        context.run_migrations()


run(context.config.attributes["connection"])
