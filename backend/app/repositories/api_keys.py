"""SQL of the API keys."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import same_digest
from app.models import ApiKey, PageSession
from app.models.base import utc_now


class ApiKeyRepository:
    """Keys by their digest."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def any_active(self) -> bool:
        """Whether at least one key is valid."""
        query = select(exists().where(ApiKey.revoked_at.is_(None)))
        return bool(await self._session.scalar(query))

    async def any_made(self) -> bool:
        """Whether a key was ever made: revoking the last one must not open the server again."""
        return bool(await self._session.scalar(select(exists().where(ApiKey.id.is_not(None)))))

    async def list(self) -> Sequence[ApiKey]:
        """All, oldest first."""
        return (await self._session.scalars(select(ApiKey).order_by(ApiKey.created_at))).all()

    async def revoke(self, key_id: uuid.UUID) -> bool:
        """Make a key invalid from now on, and end its sessions; whether it was valid."""
        await self._session.execute(delete(PageSession).where(PageSession.api_key_id == key_id))
        result = await self._session.execute(
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=utc_now())
        )
        return cast("CursorResult[Any]", result).rowcount == 1

    async def find(self, digest: str) -> ApiKey | None:
        """The key; None for an unknown or revoked one."""
        key = await self._session.scalar(
            select(ApiKey).where(ApiKey.key_sha256 == digest, ApiKey.revoked_at.is_(None))
        )
        if key is None or not same_digest(key.key_sha256, digest):
            return None
        return key

    async def add(
        self,
        digest: str,
        *,
        owner: str,
        name: str,
        requests_per_minute: int | None = None,
        max_open_contents: int | None = None,
        daily_budget_usd: float | None = None,
    ) -> ApiKey:
        """Keep a new key's digest, and its own limits if it has any."""
        key = ApiKey(
            id=uuid.uuid4(),
            owner=owner,
            name=name,
            key_sha256=digest,
            requests_per_minute=requests_per_minute,
            max_open_contents=max_open_contents,
            daily_budget_usd=daily_budget_usd,
            created_at=utc_now(),
        )
        self._session.add(key)
        await self._session.flush()
        return key
