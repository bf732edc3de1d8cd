"""SQL of the page's sessions."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import delete, func
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import ApiKey, PageSession
from app.models.base import utc_now


class SessionRepository:
    """Sessions by their cookie's digest. Whether one has expired is the database's clock's word."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, digest: str, key: ApiKey, expires_at: datetime) -> None:
        """Keep a new session of `key`."""
        self._session.add(
            PageSession(
                id=uuid.uuid4(),
                api_key_id=key.id,
                token_sha256=digest,
                created_at=utc_now(),
                expires_at=expires_at,
            )
        )
        await self._session.flush()

    async def end(self, digest: str) -> None:
        """Forget a session."""
        await self._session.execute(delete(PageSession).where(PageSession.token_sha256 == digest))

    async def end_expired(self) -> None:
        """Forget the sessions whose time is over."""
        await self._session.execute(delete(PageSession).where(PageSession.expires_at <= func.now()))
