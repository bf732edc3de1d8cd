"""SQL of what is done now and then: old contents removed, objects compared with rows, figures."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import delete, exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.models import (
    Batch,
    CallRate,
    ContentPiece,
    Generation,
    LoraModel,
    PageSession,
    RemovedCost,
    Status,
)

_OPEN = (Status.QUEUED, Status.RUNNING)


class Figures(NamedTuple):
    """How much waits and runs, the longest wait in seconds, and today's cost in USD."""

    queued: int
    running: int
    oldest_queued_seconds: float
    usd_today: float


class MaintenanceRepository:
    """Every owner's rows."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def remove_ended_before(self, moment: datetime, limit: int) -> tuple[int, list[str]]:
        """Remove at most `limit` contents that ended before; (how many, their objects' keys)."""
        rows = await self._session.scalars(
            select(Generation)
            .where(Generation.finished_at < moment)
            .order_by(Generation.finished_at)
            .limit(limit)
            .options(selectinload(Generation.pieces))
            .with_for_update(skip_locked=True, of=Generation)
        )
        old = rows.all()
        keys = [key for content in old for piece in content.pieces for key in piece.keys]
        await self._session.execute(
            delete(Generation).where(Generation.id.in_([content.id for content in old]))
        )
        return len(old), keys

    async def remove_leftovers(self, batches_before: datetime | None) -> None:
        """Remove ended sessions, rates and costs that say nothing more, and old empty batches."""
        await self._session.execute(delete(PageSession).where(PageSession.expires_at <= func.now()))
        await self._session.execute(
            delete(RemovedCost).where(RemovedCost.day < func.now() - timedelta(days=7))
        )
        await self._session.execute(
            delete(CallRate).where(CallRate.free_at < func.now() - timedelta(hours=1))
        )
        if batches_before is not None:
            await self._session.execute(
                delete(Batch).where(
                    Batch.created_at < batches_before,
                    ~exists().where(Generation.batch_id == Batch.id),
                )
            )

    async def known_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that a row names."""
        wanted = list(keys)
        pieces = await self._session.scalars(
            select(ContentPiece.object_key).where(ContentPiece.object_key.in_(wanted))
        )
        thumbnails = await self._session.scalars(
            select(ContentPiece.thumbnail_key).where(ContentPiece.thumbnail_key.in_(wanted))
        )
        loras = await self._session.scalars(
            select(LoraModel.object_key).where(LoraModel.object_key.in_(wanted))
        )
        return set(pieces) | {key for key in thumbnails if key is not None} | set(loras)

    async def piece_keys(
        self, before: datetime, after: uuid.UUID | None, limit: int
    ) -> Sequence[tuple[uuid.UUID, list[str]]]:
        """(id, objects' keys) of pictures made before a moment, in the order of their ids."""
        query = select(ContentPiece).where(ContentPiece.created_at < before)
        if after is not None:
            query = query.where(ContentPiece.id > after)
        rows = await self._session.scalars(query.order_by(ContentPiece.id).limit(limit))
        return [(row.id, row.keys) for row in rows]

    async def lora_keys(self, before: datetime) -> Sequence[str]:
        """Object keys of the LoRAs that came before a moment."""
        rows = await self._session.scalars(
            select(LoraModel.object_key).where(LoraModel.created_at < before)
        )
        return rows.all()

    async def figures(self, today: datetime) -> Figures:
        """The state of the queue, and the cost of contents since `today`."""
        row = (
            await self._session.execute(
                select(
                    func.count().filter(Generation.status == Status.QUEUED),
                    func.count().filter(Generation.status == Status.RUNNING),
                    func.extract(
                        "epoch",
                        func.now()
                        - func.min(Generation.created_at).filter(
                            Generation.status == Status.QUEUED
                        ),
                    ),
                ).where(Generation.finished_at.is_(None), Generation.status.in_(_OPEN))
            )
        ).one()
        usd = await self._session.scalar(
            select(func.sum(Generation.cost_usd)).where(Generation.finished_at >= today)
        )
        removed = await self._session.scalar(
            select(func.sum(RemovedCost.usd)).where(RemovedCost.day >= today.date())
        )
        spent = float(usd or 0) + float(removed or 0)
        return Figures(row[0], row[1], float(row[2] or 0), spent)
