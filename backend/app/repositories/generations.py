"""SQL of the contents: listing, holding and removing them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.models import Generation, Status


class GenerationRepository:
    """Contents of one owner."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def locked(self, content_id: uuid.UUID) -> Generation | None:
        """One, with its pictures, held until the transaction's end."""
        return await self._session.scalar(
            select(Generation)
            .where(Generation.id == content_id, Generation.owner == self._owner)
            .options(selectinload(Generation.pieces))
            .with_for_update(of=Generation)
        )

    async def by_idempotency_key(self, key: str) -> Generation | None:
        """The one that was accepted with this key, with its pictures."""
        return await self._session.scalar(
            select(Generation)
            .where(Generation.owner == self._owner, Generation.idempotency_key == key)
            .options(selectinload(Generation.pieces))
        )

    async def page(
        self,
        *,
        limit: int,
        after: tuple[datetime, uuid.UUID] | None,
        avatar_id: uuid.UUID | None,
        status: Status | None,
        batch_id: uuid.UUID | None = None,
    ) -> Sequence[Generation]:
        """Newest first; `after` is the last one of the page before."""
        query = select(Generation).where(Generation.owner == self._owner)
        if avatar_id is not None:
            query = query.where(Generation.avatar_id == avatar_id)
        if batch_id is not None:
            query = query.where(Generation.batch_id == batch_id)
        if status is not None:
            query = query.where(Generation.status == status)
        if after is not None:
            query = query.where(tuple_(Generation.created_at, Generation.id) < after)
        rows = await self._session.scalars(
            query.order_by(Generation.created_at.desc(), Generation.id.desc())
            .limit(limit)
            .options(selectinload(Generation.pieces))
        )
        return rows.all()

    async def delete(self, content_id: uuid.UUID) -> tuple[Generation, list[str]] | None:
        """Remove one. Returns what it was and its objects' keys; None where it is not there."""
        generation = await self.locked(content_id)
        if generation is None:
            return None
        keys = [key for piece in generation.pieces for key in piece.keys]
        await self._session.execute(delete(Generation).where(Generation.id == content_id))
        return generation, keys
