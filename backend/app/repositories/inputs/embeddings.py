"""SQL of textual inversions."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Content, Embedding
from app.models.takedown import Kind, Takedown

_NOT_TAKEN_DOWN = ~exists().where(Takedown.kind == Kind.LORA, Takedown.value == Embedding.sha256)


class EmbeddingRepository:
    """One owner's."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def list(self) -> Sequence[Embedding]:
        """All, by name."""
        query = select(Embedding).where(Embedding.owner == self._owner)
        return (await self._session.scalars(query.order_by(Embedding.name))).all()

    async def usable(self) -> Sequence[Embedding]:
        """Those that were not taken down, by name."""
        query = select(Embedding).where(Embedding.owner == self._owner, _NOT_TAKEN_DOWN)
        return (await self._session.scalars(query.order_by(Embedding.name))).all()

    async def get(self, embedding_id: uuid.UUID, *, lock: bool = False) -> Embedding | None:
        """One; `lock` holds it until the transaction's end."""
        query = select(Embedding).where(
            Embedding.id == embedding_id, Embedding.owner == self._owner
        )
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def get_many(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Embedding]:
        """Those of `ids` that may be drawn with, held against deletion until the transaction's
        end."""
        rows = await self._session.scalars(
            select(Embedding)
            .where(Embedding.id.in_(list(ids)), Embedding.owner == self._owner, _NOT_TAKEN_DOWN)
            .order_by(Embedding.id)
            .with_for_update(read=True)
        )
        return {row.id: row for row in rows}

    async def by_sha256(self, sha256: str) -> Embedding | None:
        """The one with these bytes."""
        return await self._session.scalar(
            select(Embedding).where(Embedding.owner == self._owner, Embedding.sha256 == sha256)
        )

    async def waiting(self, embedding_id: uuid.UUID) -> int:
        """How many contents that have not ended are drawn with it."""
        return (
            await self._session.scalar(
                select(func.count())
                .select_from(Content)
                .where(
                    Content.owner == self._owner,
                    Content.finished_at.is_(None),
                    Content.asked["embeddings"].contains([{"embedding_id": str(embedding_id)}]),
                )
            )
            or 0
        )

    async def add(self, embedding: Embedding) -> None:
        """A new one."""
        self._session.add(embedding)
        await self._session.flush()

    async def delete(self, embedding: Embedding) -> None:
        """Remove its row."""
        await self._session.delete(embedding)
        await self._session.flush()
