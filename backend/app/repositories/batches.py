"""SQL of the batches."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Batch, Content


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
        return batch, (await self._counts([batch_id]))[batch_id]

    async def page(
        self,
        *,
        limit: int,
        after: tuple[datetime, uuid.UUID] | None,
        is_grid: bool | None = None,
    ) -> list[tuple[Batch, dict[str, int]]]:
        """Newest first, each with its counts; `after` is the last one of the page before."""
        query = select(Batch).where(Batch.owner == self._owner)
        if is_grid is not None:
            query = query.where(Batch.request.has_key("grid").is_(is_grid))
        if after is not None:
            query = query.where(tuple_(Batch.created_at, Batch.id) < after)
        batches = (
            await self._session.scalars(
                query.order_by(Batch.created_at.desc(), Batch.id.desc()).limit(limit)
            )
        ).all()
        counts = await self._counts([batch.id for batch in batches])
        return [(batch, counts[batch.id]) for batch in batches]

    async def _counts(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[str, int]]:
        """How many contents of each batch are in which state."""
        found: dict[uuid.UUID, dict[str, int]] = {batch_id: {} for batch_id in ids}
        rows = await self._session.execute(
            select(Batch.id, Content.status, func.count())
            .join(Content, Content.batch_id == Batch.id)
            .where(Batch.id.in_(ids))
            .group_by(Batch.id, Content.status)
        )
        for batch_id, status, count in rows:
            found[batch_id][status] = count
        return found

    async def by_idempotency_key(self, key: str) -> Batch | None:
        """The one that was accepted with this key."""
        return await self._session.scalar(
            select(Batch).where(Batch.owner == self._owner, Batch.idempotency_key == key)
        )

    async def open_ids(self, batch_id: uuid.UUID) -> Sequence[uuid.UUID]:
        """Its contents that have not ended, in the order that they were asked for."""
        rows = await self._session.scalars(
            select(Content.id)
            .where(
                Content.batch_id == batch_id,
                Content.owner == self._owner,
                Content.finished_at.is_(None),
            )
            .order_by(Content.created_at, Content.id)
        )
        return rows.all()

    async def content_ids(self, batch_id: uuid.UUID) -> Sequence[uuid.UUID]:
        """Its contents that are still there, in the order that they were asked for."""
        rows = await self._session.scalars(
            select(Content.id)
            .where(Content.batch_id == batch_id, Content.owner == self._owner)
            .order_by(Content.created_at, Content.id)
        )
        return rows.all()
