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
    Content,
    Embedding,
    GenerationRecord,
    Image,
    InputImage,
    LoraModel,
    PageSession,
    RemovedCost,
    Share,
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
            select(Content)
            .where(Content.finished_at < moment)
            .order_by(Content.finished_at)
            .limit(limit)
            .options(selectinload(Content.images))
            .with_for_update(skip_locked=True, of=Content)
        )
        old = rows.all()
        keys = [key for content in old for image in content.images for key in image.keys]
        await self._session.execute(
            delete(Content).where(Content.id.in_([content.id for content in old]))
        )
        return len(old), keys

    async def empty_bin(self, moment: datetime, limit: int) -> tuple[int, list[str]]:
        """Remove at most `limit` pictures, and contents, that went into the bin before; (how many,
        their objects' keys)."""
        contents = (
            await self._session.scalars(
                select(Content)
                .where(Content.deleted_at < moment, Content.finished_at.is_not(None))
                .limit(limit)
                .options(selectinload(Content.images))
                .with_for_update(skip_locked=True, of=Content)
            )
        ).all()
        pictures = (
            await self._session.scalars(
                select(Image)
                .join(Content, Content.id == Image.generation_id)
                .where(Image.deleted_at < moment, Content.deleted_at.is_(None))
                .limit(limit)
                .with_for_update(skip_locked=True, of=Image)
            )
        ).all()
        all_images = [*pictures, *(image for content in contents for image in content.images)]
        keys = [key for image in all_images for key in image.keys]
        await self._session.execute(
            delete(Content).where(Content.id.in_([content.id for content in contents]))
        )
        await self._session.execute(
            delete(Image).where(Image.id.in_([image.id for image in pictures]))
        )
        return len(contents) + len(pictures), keys

    async def remove_records(self, before: datetime) -> None:
        """Forget what was drawn earlier."""
        await self._session.execute(
            delete(GenerationRecord).where(GenerationRecord.created_at < before)
        )

    async def remove_leftovers(self, batches_before: datetime | None) -> None:
        """Remove ended sessions, rates and costs that say nothing more, and old empty batches."""
        await self._session.execute(delete(PageSession).where(PageSession.expires_at <= func.now()))
        await self._session.execute(
            delete(RemovedCost).where(RemovedCost.day < func.now() - timedelta(days=7))
        )
        await self._session.execute(delete(Share).where(Share.expires_at <= func.now()))
        await self._session.execute(
            delete(CallRate).where(CallRate.free_at < func.now() - timedelta(hours=1))
        )
        if batches_before is not None:
            await self._session.execute(
                delete(Batch).where(
                    Batch.created_at < batches_before,
                    ~exists().where(Content.batch_id == Batch.id),
                )
            )

    async def known_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that a row names."""
        wanted = list(keys)
        images = await self._session.scalars(
            select(Image.object_key).where(Image.object_key.in_(wanted))
        )
        thumbnails = await self._session.scalars(
            select(Image.thumbnail_key).where(Image.thumbnail_key.in_(wanted))
        )
        loras = await self._session.scalars(
            select(LoraModel.object_key).where(LoraModel.object_key.in_(wanted))
        )
        inputs = await self._session.scalars(
            select(InputImage.object_key).where(InputImage.object_key.in_(wanted))
        )
        embeddings = await self._session.scalars(
            select(Embedding.object_key).where(Embedding.object_key.in_(wanted))
        )
        files = {*inputs, *images, *loras, *embeddings}
        return files | {key for key in thumbnails if key is not None}

    async def piece_keys(
        self, before: datetime, after: uuid.UUID | None, limit: int
    ) -> Sequence[tuple[uuid.UUID, list[str]]]:
        """(id, objects' keys) of pictures made before a moment, in the order of their ids."""
        query = select(Image).where(Image.created_at < before)
        if after is not None:
            query = query.where(Image.id > after)
        rows = await self._session.scalars(query.order_by(Image.id).limit(limit))
        return [(row.id, row.keys) for row in rows]

    async def file_keys(self, before: datetime) -> Sequence[str]:
        """Object keys of LoRAs, embeddings and uploaded pictures that came before a moment."""
        found: list[str] = []
        for kind in (LoraModel, Embedding, InputImage):
            found += await self._session.scalars(
                select(kind.object_key).where(kind.created_at < before)
            )
        return found

    async def figures(self, today: datetime) -> Figures:
        """The state of the queue, and the cost of contents since `today`."""
        row = (
            await self._session.execute(
                select(
                    func.count().filter(Content.status == Status.QUEUED),
                    func.count().filter(Content.status == Status.RUNNING),
                    func.extract(
                        "epoch",
                        func.now()
                        - func.min(Content.created_at).filter(Content.status == Status.QUEUED),
                    ),
                ).where(Content.finished_at.is_(None), Content.status.in_(_OPEN))
            )
        ).one()
        usd = await self._session.scalar(
            select(func.sum(Content.cost_usd)).where(Content.finished_at >= today)
        )
        removed = await self._session.scalar(
            select(func.sum(RemovedCost.usd)).where(RemovedCost.day >= today.date())
        )
        spent = float(usd or 0) + float(removed or 0)
        return Figures(row[0], row[1], float(row[2] or 0), spent)
