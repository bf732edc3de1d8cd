"""SQL of the API keys."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import DriverConnection, fetch_rows, fetch_value
from app.core.security import same_digest
from app.models import ApiKey, PageSession
from app.models.base import utc_now
from app.repositories.columns import listed

_COLUMNS = tuple(ApiKey.__table__.columns.keys())
_KEY = f"""
    SELECT {listed(_COLUMNS)}, key_sha256 AS proof FROM api_key
    WHERE key_sha256 = %(digest)s AND revoked_at IS NULL
"""
# Whether a session has expired is the database's clock's word.
_KEY_OF_SESSION = f"""
    SELECT {listed(_COLUMNS, "k.")}, s.token_sha256 AS proof
    FROM api_key k JOIN page_session s ON s.api_key_id = k.id
    WHERE s.token_sha256 = %(digest)s AND s.expires_at > now() AND k.revoked_at IS NULL
"""


class CallerRepository:
    """Who calls: asked at every call, so past the session. Keys belong to no session."""

    def __init__(self, connection: DriverConnection) -> None:
        self._connection = connection

    async def any_made(self) -> bool:
        """Whether a key was ever made: revoking the last one must not open the server again."""
        return bool(
            await fetch_value(self._connection, "SELECT EXISTS (SELECT 1 FROM api_key)", {})
        )

    async def find(self, digest: str) -> ApiKey | None:
        """The key with this digest; None for an unknown or revoked one."""
        return self._same(await fetch_rows(self._connection, _KEY, {"digest": digest}), digest)

    async def of_session(self, digest: str) -> ApiKey | None:
        """The key that signed in; None where the session is unknown, over, or its key revoked."""
        return self._same(
            await fetch_rows(self._connection, _KEY_OF_SESSION, {"digest": digest}), digest
        )

    @staticmethod
    def _same(rows: list[dict[str, Any]], digest: str) -> ApiKey | None:
        if not rows or not same_digest(rows[0].pop("proof"), digest):
            return None
        return ApiKey(**rows[0])


class ApiKeyRepository:
    """Keys as they are made, listed and revoked."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def any_active(self) -> bool:
        """Whether at least one key is valid."""
        query = select(exists().where(ApiKey.revoked_at.is_(None)))
        return bool(await self._session.scalar(query))

    async def list(self) -> Sequence[ApiKey]:
        """All, oldest first."""
        return (await self._session.scalars(select(ApiKey).order_by(ApiKey.created_at))).all()

    async def valid_of(self, owner: str) -> Sequence[ApiKey]:
        """An owner's that are not revoked, oldest first."""
        query = select(ApiKey).where(ApiKey.owner == owner, ApiKey.revoked_at.is_(None))
        return (await self._session.scalars(query.order_by(ApiKey.created_at, ApiKey.id))).all()

    async def hold(self, key_id: uuid.UUID) -> ApiKey | None:
        """A valid key, which stays so until the transaction's end."""
        query = select(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        return await self._session.scalar(query.with_for_update())

    async def count_made_by(self, key_id: uuid.UUID) -> int:
        """How many valid keys a key has made."""
        query = select(func.count()).where(ApiKey.made_by == key_id, ApiKey.revoked_at.is_(None))
        return await self._session.scalar(query) or 0

    async def revoke(self, key_id: uuid.UUID) -> bool:
        """Make a key and those that it made invalid from now on, and end their sessions; whether it
        was valid."""
        # First the key itself: who makes another one with it at this moment holds it.
        revoked = update(ApiKey).where(ApiKey.revoked_at.is_(None)).values(revoked_at=utc_now())
        result = await self._session.execute(revoked.where(ApiKey.id == key_id))
        await self._session.execute(revoked.where(ApiKey.made_by == key_id))
        family = select(ApiKey.id).where(or_(ApiKey.id == key_id, ApiKey.made_by == key_id))
        await self._session.execute(delete(PageSession).where(PageSession.api_key_id.in_(family)))
        return cast("CursorResult[Any]", result).rowcount == 1

    async def add(
        self,
        digest: str,
        *,
        owner: str,
        name: str,
        requests_per_minute: int | None = None,
        max_open_contents: int | None = None,
        daily_budget_usd: float | None = None,
        made_by: uuid.UUID | None = None,
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
            made_by=made_by,
            created_at=utc_now(),
        )
        self._session.add(key)
        await self._session.flush()
        return key
