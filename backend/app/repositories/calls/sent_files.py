"""SQL of the files that are named before they have come."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import ApiKey, SentFile


class SentFileRepository:
    """Every owner's: whoever brings a file shows its token."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, file: SentFile) -> None:
        """Insert."""
        self._session.add(file)
        await self._session.flush()

    async def forget_late(self, owner: str, before: datetime) -> None:
        """Remove what an owner named before then, and never sent."""
        await self._session.execute(
            delete(SentFile).where(
                SentFile.owner == owner,
                SentFile.created_at < before,
                SentFile.input_image_id.is_(None),
                SentFile.lora_id.is_(None),
            )
        )

    async def count_open(self, owner: str) -> int:
        """How many of an owner's have not come; others of the owner wait until the end."""
        await self._session.execute(
            select(func.pg_advisory_xact_lock(func.hashtextextended(f"sent_file:{owner}", 0)))
        )
        query = select(func.count()).where(
            SentFile.owner == owner,
            SentFile.input_image_id.is_(None),
            SentFile.lora_id.is_(None),
        )
        return await self._session.scalar(query) or 0

    async def with_valid_key(self, file_id: uuid.UUID) -> SentFile | None:
        """One whose sender's key is valid, or who had none."""
        valid = select(ApiKey.id).where(ApiKey.revoked_at.is_(None))
        return await self._session.scalar(
            select(SentFile).where(
                SentFile.id == file_id,
                or_(SentFile.key_id.is_(None), SentFile.key_id.in_(valid)),
            )
        )

    async def of_owner(self, owner: str, file_id: uuid.UUID) -> SentFile | None:
        """One of an owner's."""
        return await self._session.scalar(
            select(SentFile).where(SentFile.id == file_id, SentFile.owner == owner)
        )

    async def came(
        self, file_id: uuid.UUID, image_id: uuid.UUID | None, lora_id: uuid.UUID | None
    ) -> None:
        """Write what it is."""
        await self._session.execute(
            update(SentFile)
            .where(SentFile.id == file_id)
            .values(input_image_id=image_id, lora_id=lora_id)
        )
