"""SQL of takedowns, over all owners."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import BigInteger, bindparam, delete, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.models import Content, Image, LoraModel
from app.models.takedown import Takedown

# Bits in which two likenesses differ; PostgreSQL counts them in a bit string.
_NEAR = text("bit_count((content_piece.likeness # :value)::bit(64)) <= :bits")


class TakedownRepository:
    """Every owner's rows."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def pictures_of(self, content_id: uuid.UUID) -> Sequence[Image]:
        """A content's images."""
        return (
            await self._session.scalars(select(Image).where(Image.generation_id == content_id))
        ).all()

    async def contents_with(
        self, hashes: Sequence[str], likenesses: Sequence[int], bits: int
    ) -> set[uuid.UUID]:
        """Ids of contents of which a picture is one of `hashes` or near one of `likenesses`."""
        found = set(
            await self._session.scalars(
                select(Image.generation_id).where(
                    or_(Image.sha256.in_(hashes), Image.file_sha256.in_(hashes))
                )
            )
        )
        for value in likenesses:
            near = _NEAR.bindparams(bindparam("value", value, BigInteger), bits=bits)
            found |= set(await self._session.scalars(select(Image.generation_id).where(near)))
        return found

    async def remove(self, ids: set[uuid.UUID]) -> list[tuple[Content, list[str]]]:
        """Remove these contents; each with its objects' keys."""
        rows = await self._session.scalars(
            select(Content)
            .where(Content.id.in_(ids))
            .options(selectinload(Content.images))
            .with_for_update(of=Content)
        )
        removed = [(row, [key for image in row.images for key in image.keys]) for row in rows]
        await self._session.execute(delete(Content).where(Content.id.in_(ids)))
        return removed

    async def lora_keys(self, sha256: str) -> list[str]:
        """Objects of every owner's LoRA with these bytes."""
        return list(
            await self._session.scalars(
                select(LoraModel.object_key).where(LoraModel.sha256 == sha256)
            )
        )

    async def blocked(self, hashes: Sequence[str]) -> set[str]:
        """Those of LoRAs' `hashes` that were taken down."""
        if not hashes:
            return set()
        return set(
            await self._session.scalars(
                select(Takedown.value).where(Takedown.kind == "lora", Takedown.value.in_(hashes))
            )
        )

    def add(self, takedown: Takedown) -> None:
        """Keep the record."""
        self._session.add(takedown)

    async def latest(self, limit: int) -> Sequence[Takedown]:
        """The newest records."""
        return (
            await self._session.scalars(
                select(Takedown).order_by(Takedown.created_at.desc()).limit(limit)
            )
        ).all()
