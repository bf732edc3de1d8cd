"""SQL of the calls that contents came by, and of the secrets that sign their webhooks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.core.db import DriverConnection, fetch_rows
from app.models import Content, DialectCall, Webhook
from app.models.webhook import Kind
from app.repositories.columns import as_values, listed, parameters

_COLUMNS = tuple(DialectCall.__table__.columns.keys())
_ADD = f"INSERT INTO dialect_call ({listed(_COLUMNS)}) VALUES ({parameters(_COLUMNS)})"
_GET = f"SELECT {listed(_COLUMNS)} FROM dialect_call WHERE content_id = %(content_id)s"


async def add_call(connection: DriverConnection, call: DialectCall) -> None:
    """Insert, in the connection's transaction."""
    values = {name: getattr(call, name) for name in _COLUMNS}
    await connection.execute(_ADD.encode(), as_values(DialectCall, values))


async def call_of(connection: DriverConnection, content_id: uuid.UUID) -> DialectCall | None:
    """The call that a content came by, whoever owns it."""
    rows = await fetch_rows(connection, _GET, {"content_id": content_id})
    return DialectCall(**rows[0]) if rows else None


class DialectCallRepository:
    """One owner's calls of one dialect."""

    def __init__(self, session: AsyncSession, owner: str, dialect: Kind) -> None:
        self._session = session
        self._owner = owner
        self._dialect = dialect

    async def get(self, content_id: uuid.UUID) -> tuple[Content, DialectCall] | None:
        """One with its content and that one's pictures."""
        rows = await self._session.execute(
            select(Content, DialectCall)
            .join(DialectCall, DialectCall.content_id == Content.id)
            .where(
                Content.id == content_id,
                Content.owner == self._owner,
                Content.deleted_at.is_(None),
                DialectCall.dialect == self._dialect.value,
            )
            .options(selectinload(Content.images))
        )
        row = rows.first()
        return None if row is None else (row[0], row[1])

    async def page(
        self, limit: int, after: tuple[datetime, uuid.UUID] | None
    ) -> Sequence[tuple[Content, DialectCall]]:
        """Newest first."""
        query = (
            select(Content, DialectCall)
            .join(DialectCall, DialectCall.content_id == Content.id)
            .where(
                DialectCall.owner == self._owner,
                Content.owner == self._owner,
                Content.deleted_at.is_(None),
                DialectCall.dialect == self._dialect.value,
            )
        )
        if after is not None:
            query = query.where(tuple_(DialectCall.created_at, DialectCall.content_id) < after)
        rows = await self._session.execute(
            query.order_by(DialectCall.created_at.desc(), DialectCall.content_id.desc())
            .limit(limit)
            .options(selectinload(Content.images))
        )
        return [(row[0], row[1]) for row in rows]

    async def signer(self, fresh: Webhook) -> Webhook:
        """The owner's one webhook of this kind: `fresh`, where there is none yet."""
        values = {
            column.key: getattr(fresh, column.key)
            for column in Webhook.__table__.columns
            if getattr(fresh, column.key) is not None
        }
        await self._session.execute(insert(Webhook).values(values).on_conflict_do_nothing())
        found = await self._session.scalar(
            select(Webhook).where(Webhook.owner == self._owner, Webhook.kind == self._dialect.value)
        )
        assert found is not None
        return found


async def signers(session: AsyncSession, kind: Kind, limit: int) -> Sequence[Webhook]:
    """Every owner's webhook of a kind, the oldest first."""
    rows = await session.scalars(
        select(Webhook).where(Webhook.kind == kind.value).order_by(Webhook.created_at).limit(limit)
    )
    return rows.all()
