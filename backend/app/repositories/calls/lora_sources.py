"""SQL of the URLs that LoRAs came from."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import LoraModel, LoraSource


class LoraSourceRepository:
    """One owner's."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def get(self, url_sha256: str) -> tuple[LoraSource, LoraModel] | None:
        """Where a URL led to, while that LoRA is there."""
        rows = await self._session.execute(
            select(LoraSource, LoraModel)
            .join(LoraModel, LoraModel.id == LoraSource.lora_id)
            .where(LoraSource.owner == self._owner, LoraSource.url_sha256 == url_sha256)
        )
        row = rows.first()
        return None if row is None else (row[0], row[1])

    async def put(
        self, url_sha256: str, lora_id: uuid.UUID, etag: str | None, now: datetime
    ) -> None:
        """Write where a URL leads to now."""
        values = {"lora_id": lora_id, "etag": etag, "looked_at": now}
        await self._session.execute(
            insert(LoraSource)
            .values(owner=self._owner, url_sha256=url_sha256, **values)
            .on_conflict_do_update(index_elements=["owner", "url_sha256"], set_=values)
        )
