"""SQL of the kept base model descriptions."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import SeenBaseModel
from app.models.base import utc_now


class BaseModelRepository:
    """One row per endpoint."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, endpoint: str) -> dict[str, Any] | None:
        """The kept health answer."""
        row = await self._session.get(SeenBaseModel, endpoint)
        return None if row is None else row.health

    async def put(self, endpoint: str, health: dict[str, Any]) -> None:
        """Keep `health`, instead of an older one."""
        values = {"health": health, "seen_at": utc_now()}
        await self._session.execute(
            insert(SeenBaseModel)
            .values(endpoint=endpoint, **values)
            .on_conflict_do_update(index_elements=["endpoint"], set_=values)
        )
