"""Avatars: made, changed, removed.

Must not know: HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.core.errors import NotFound
from app.models import Avatar
from app.models.base import utc_now
from app.repositories.avatars import AvatarRepository
from app.repositories.loras import LoraRepository
from app.schemas.identities import AvatarIn, AvatarPatch
from app.services.collection import check_cover
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.prompts.weights import parse_weights


class AvatarService:
    """One owner's avatars."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, owner: str, asked: AvatarIn) -> Avatar:
        """A new avatar.

        Raises:
            NotFound: its LoRA is not there.
            InvalidPrompt, InvalidRequest: a prompt cannot be read, or is blank.
        """
        _check_prompt(asked.base_prompt)
        parse_weights(asked.negative_prompt, "negative_prompt")
        now = utc_now()
        avatar = Avatar(
            id=uuid.uuid4(), owner=owner, created_at=now, updated_at=now, **asked.model_dump()
        )
        async with self._database.session() as session:
            await _check_lora(session, owner, asked.lora_model_id)
            await check_cover(session, owner, asked.cover_image_id)
            await AvatarRepository(session, owner).add(avatar)
            await session.refresh(avatar, ["cover"])
        return avatar

    async def list(self, owner: str) -> Sequence[Avatar]:
        """All, newest first."""
        async with self._database.snapshot() as session:
            return await AvatarRepository(session, owner).list()

    async def get(self, owner: str, avatar_id: uuid.UUID) -> Avatar:
        """One.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.snapshot() as session:
            return await _find(session, owner, avatar_id)

    async def change(self, owner: str, avatar_id: uuid.UUID, asked: AvatarPatch) -> Avatar:
        """Change the fields that `asked` sets.

        Raises:
            NotFound: the avatar or its new LoRA is not there.
            InvalidPrompt, InvalidRequest: a prompt cannot be read, or is blank.
        """
        changes = asked.model_dump(exclude_unset=True)
        if "base_prompt" in changes:
            _check_prompt(asked.base_prompt)
        parse_weights(asked.negative_prompt, "negative_prompt")
        async with self._database.session() as session:
            avatar = await _find(session, owner, avatar_id, lock=True)
            await _check_lora(session, owner, changes.get("lora_model_id"))
            await check_cover(session, owner, changes.get("cover_image_id"))
            for field, value in changes.items():
                setattr(avatar, field, value)
            avatar.updated_at = utc_now()
            await session.flush()
            await session.refresh(avatar, ["cover"])
        return avatar

    async def delete(self, owner: str, avatar_id: uuid.UUID) -> None:
        """Remove one; its contents stay.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            avatar = await _find(session, owner, avatar_id, lock=True)
            await AvatarRepository(session, owner).delete(avatar)


async def _find(
    session: AsyncSession, owner: str, avatar_id: uuid.UUID, *, lock: bool = False
) -> Avatar:
    avatar = await AvatarRepository(session, owner).get(avatar_id, lock=lock)
    if avatar is None:
        raise NotFound("There is no avatar with this id.")
    return avatar


async def _check_lora(session: AsyncSession, owner: str, lora_id: uuid.UUID | None) -> None:
    if lora_id is None:
        return
    if not await LoraRepository(session, owner).get_many([lora_id]):
        raise NotFound("There is no LoRA with this id.", field="lora_model_id")


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InvalidRequest(
            "base_prompt is blank: say what the avatar looks like",
            details={"field": "base_prompt"},
        )
    # Else each of its contents would be refused, for what no caller of them has written.
    parse_weights(prompt, "base_prompt")
