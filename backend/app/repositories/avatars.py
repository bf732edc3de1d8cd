"""SQL of the avatars."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Avatar


class AvatarRepository:
    """One owner's avatars."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def list(self) -> Sequence[Avatar]:
        """All, newest first."""
        rows = await self._session.scalars(
            select(Avatar)
            .where(Avatar.owner == self._owner)
            .order_by(Avatar.created_at.desc(), Avatar.id)
        )
        return rows.all()

    async def get(self, avatar_id: uuid.UUID, *, lock: bool = False) -> Avatar | None:
        """One; `lock` holds it until the transaction's end."""
        query = select(Avatar).where(Avatar.id == avatar_id, Avatar.owner == self._owner)
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def add(self, avatar: Avatar) -> None:
        """Insert."""
        self._session.add(avatar)
        await self._session.flush()

    async def delete(self, avatar: Avatar) -> None:
        """Remove the row; its contents stay, without an avatar."""
        await self._session.delete(avatar)
