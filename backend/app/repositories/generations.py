"""SQL of the contents: reading them, and the fenced steps of a job's life."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete, func, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from app.models import ContentPiece, Generation, Status
from app.models.base import utc_now

_OPEN = (Status.QUEUED, Status.RUNNING)


class GenerationRepository:
    """Contents of one owner."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def get(self, content_id: uuid.UUID, *, lock: bool = False) -> Generation | None:
        """One, with its pictures; `lock` holds it until the transaction's end."""
        query = select(Generation).where(
            Generation.id == content_id, Generation.owner == self._owner
        )
        if lock:
            locked = query.options(selectinload(Generation.pieces)).with_for_update(of=Generation)
            return await self._session.scalar(locked)
        rows = await self._session.execute(query.options(joinedload(Generation.pieces)))
        return rows.unique().scalar_one_or_none()

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

    async def add(self, generation: Generation) -> None:
        """Insert; raises IntegrityError where its idempotency key was used meanwhile."""
        self._session.add(generation)
        await self._session.flush()

    async def delete(self, content_id: uuid.UUID) -> tuple[Generation, list[str]] | None:
        """Remove one. Returns what it was and its objects' keys; None where it is not there."""
        generation = await self._session.scalar(
            select(Generation)
            .where(Generation.id == content_id, Generation.owner == self._owner)
            .options(selectinload(Generation.pieces))
            .with_for_update(of=Generation)
        )
        if generation is None:
            return None
        keys = [key for piece in generation.pieces for key in piece.keys]
        await self._session.execute(delete(Generation).where(Generation.id == content_id))
        return generation, keys

    async def usual_usd(self) -> float | None:
        """Mean USD per picture of the owner's last priced contents; None where none was priced."""
        recent = (
            select(
                Generation.cost_usd.label("usd"),
                func.coalesce(Generation.parameters["num_images"].as_integer(), 1).label("images"),
            )
            .where(Generation.owner == self._owner, Generation.cost_usd.is_not(None))
            .order_by(Generation.created_at.desc())
            .limit(50)
            .subquery()
        )
        mean = await self._session.scalar(
            select(func.sum(recent.c.usd) / func.nullif(func.sum(recent.c.images), 0))
        )
        return None if mean is None else float(mean)


class JobRepository:
    """What runners do to contents, whoever owns them. Each step is one statement."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def status(self, content_id: uuid.UUID) -> str | None:
        """Where a content is; None where it is gone."""
        return await self._session.scalar(
            select(Generation.status).where(Generation.id == content_id)
        )

    async def wants_stop(self, content_id: uuid.UUID) -> bool:
        """Whether somebody asked to cancel a content."""
        return bool(
            await self._session.scalar(
                select(Generation.cancel_requested_at.is_not(None)).where(
                    Generation.id == content_id
                )
            )
        )

    async def claim(self, content_id: uuid.UUID) -> Generation | None:
        """Begin a new attempt; None where there is nothing left to do.

        Taking up a `running` content is right: its last runner is held for dead, and if it wakes,
        the grown attempt keeps it from writing.
        """
        return await self._session.scalar(
            update(Generation)
            .where(Generation.id == content_id, Generation.status.in_(_OPEN))
            .values(
                status=Status.RUNNING,
                attempt=Generation.attempt + 1,
                started_at=func.coalesce(Generation.started_at, utc_now()),
            )
            .returning(Generation)
        )

    async def finish(
        self,
        content_id: uuid.UUID,
        attempt: int,
        values: dict[str, Any],
        pieces: Sequence[ContentPiece] = (),
    ) -> bool:
        """Write a final state, fenced. False: this attempt no longer holds the content."""
        if not await self._fenced(content_id, attempt, {"finished_at": utc_now(), **values}):
            return False
        self._session.add_all(pieces)
        await self._session.flush()
        return True

    async def release(self, content_id: uuid.UUID, attempt: int) -> bool:
        """Put a content back in the queue, fenced, for another runner."""
        return await self._fenced(content_id, attempt, {"status": Status.QUEUED})

    async def _fenced(self, content_id: uuid.UUID, attempt: int, values: dict[str, Any]) -> bool:
        result = await self._session.execute(
            update(Generation)
            .where(
                Generation.id == content_id,
                Generation.attempt == attempt,
                Generation.status == Status.RUNNING,
            )
            .values(values)
        )
        return cast("CursorResult[Any]", result).rowcount == 1

    async def set_job(self, content_id: uuid.UUID, job_id: int) -> None:
        """Remember which job of the queue works on a content."""
        await self._session.execute(
            update(Generation).where(Generation.id == content_id).values(job_id=job_id)
        )

    async def orphans(self) -> Sequence[uuid.UUID]:
        """Open contents whose job is gone from the queue; locked until the transaction's end."""
        rows = await self._session.scalars(
            select(Generation.id)
            .where(
                Generation.status.in_(_OPEN),
                text(
                    "NOT EXISTS (SELECT 1 FROM procrastinate_jobs j WHERE j.id = generation.job_id"
                    " AND j.status IN ('todo', 'doing'))"
                ),
            )
            .order_by(Generation.created_at)
            .with_for_update(skip_locked=True)
        )
        return rows.all()
