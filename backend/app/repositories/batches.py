"""SQL of the batches."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Batch, Generation


class BatchRepository:
    """One owner's batches."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def get(self, batch_id: uuid.UUID) -> tuple[Batch, dict[str, int]] | None:
        """One, and how many of its contents are in which state."""
        batch = await self._session.scalar(
            select(Batch).where(Batch.id == batch_id, Batch.owner == self._owner)
        )
        if batch is None:
            return None
        rows = await self._session.execute(
            select(Generation.status, func.count())
            .where(Generation.batch_id == batch_id)
            .group_by(Generation.status)
        )
        return batch, {row[0]: row[1] for row in rows}

    async def by_idempotency_key(self, key: str) -> Batch | None:
        """The one that was accepted with this key."""
        return await self._session.scalar(
            select(Batch).where(Batch.owner == self._owner, Batch.idempotency_key == key)
        )

    async def content_ids(self, batch_id: uuid.UUID) -> Sequence[uuid.UUID]:
        """Its contents that are still there, in the order that they were asked for."""
        rows = await self._session.scalars(
            select(Generation.id)
            .where(Generation.batch_id == batch_id, Generation.owner == self._owner)
            .order_by(Generation.created_at, Generation.id)
        )
        return rows.all()
