"""SQL of the LoRA library."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Avatar, Content, LoraModel, Status
from app.models.takedown import Kind, Takedown

_RECENT = 1000

_NOT_TAKEN_DOWN = ~exists().where(Takedown.kind == Kind.LORA, Takedown.value == LoraModel.sha256)


class LoraRepository:
    """One owner's LoRAs."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def list(self) -> Sequence[LoraModel]:
        """All, newest first."""
        rows = await self._session.scalars(
            select(LoraModel)
            .where(LoraModel.owner == self._owner)
            .order_by(LoraModel.created_at.desc(), LoraModel.id)
        )
        return rows.all()

    async def get(self, lora_id: uuid.UUID, *, lock: bool = False) -> LoraModel | None:
        """One; `lock` holds it until the transaction's end."""
        query = select(LoraModel).where(LoraModel.id == lora_id, LoraModel.owner == self._owner)
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def get_many(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, LoraModel]:
        """Those of `ids` that are there, held against deletion until the transaction's end.

        One that was taken down is not there for whoever wants to draw with it.
        """
        rows = await self._session.scalars(
            select(LoraModel)
            .where(
                LoraModel.id.in_(list(ids)),
                LoraModel.owner == self._owner,
                _NOT_TAKEN_DOWN,
            )
            .order_by(LoraModel.id)
            .with_for_update(read=True, of=LoraModel)
        )
        return {row.id: row for row in rows}

    async def former_name(self, lora_id: uuid.UUID) -> str | None:
        """What one that is not there was called, if one of the owner's last contents used it."""
        recent = (
            select(Content.loras)
            .where(Content.owner == self._owner)
            .order_by(Content.created_at.desc())
            .limit(_RECENT)
            .subquery()
        )
        used = await self._session.scalar(
            select(recent.c.loras)
            .where(recent.c.loras.contains([{"lora_model_id": str(lora_id)}]))
            .limit(1)
        )
        names = [lora["name"] for lora in used or () if lora["lora_model_id"] == str(lora_id)]
        return names[0] if names else None

    async def by_sha256(self, sha256: str) -> LoraModel | None:
        """The one with these bytes."""
        return await self._session.scalar(
            select(LoraModel).where(LoraModel.owner == self._owner, LoraModel.sha256 == sha256)
        )

    async def by_hashes(self, hashes: Iterable[str]) -> dict[str, LoraModel]:
        """Those with these bytes that may be used; one that was taken down is not there."""
        rows = await self._session.scalars(
            select(LoraModel).where(
                LoraModel.owner == self._owner, LoraModel.sha256.in_(list(hashes)), _NOT_TAKEN_DOWN
            )
        )
        return {row.sha256: row for row in rows}

    async def names(self) -> dict[uuid.UUID, str]:
        """Every LoRA's name, the newest LoRA first."""
        rows = await self._session.execute(
            select(LoraModel.id, LoraModel.name)
            .where(LoraModel.owner == self._owner)
            .order_by(LoraModel.created_at.desc(), LoraModel.id)
        )
        return {row.id: row.name for row in rows}

    async def hold_names(self) -> None:
        """Keep others of this owner from taking a name until the transaction's end."""
        await self.hold(f"owners/{self._owner}/lora-names")

    async def hold(self, object_key: str) -> None:
        """Wait until no other transaction works on this object, and keep others waiting."""
        digest = hashlib.sha256(object_key.encode()).digest()
        number = int.from_bytes(digest[:8], signed=True)
        await self._session.execute(select(func.pg_advisory_xact_lock(number)))

    async def add(self, lora: LoraModel) -> None:
        """Insert."""
        self._session.add(lora)
        await self._session.flush()

    async def delete(self, lora: LoraModel) -> None:
        """Remove the row."""
        await self._session.delete(lora)

    async def users(self, lora_id: uuid.UUID) -> tuple[int, int]:
        """(avatars that name it, contents that still wait for it)."""
        avatars = await self._session.scalar(
            select(func.count()).select_from(Avatar).where(Avatar.lora_model_id == lora_id)
        )
        contents = await self._session.scalar(
            select(func.count())
            .select_from(Content)
            .where(
                Content.status.in_([Status.QUEUED, Status.RUNNING]),
                Content.loras.contains([{"lora_model_id": str(lora_id)}]),
            )
        )
        return avatars or 0, contents or 0
