"""SQL of pictures that were uploaded to draw from."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    String,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.models import Content, Image, InputImage
from app.models.takedown import Known, TakenDownPicture
from app.repositories.upkeep.near import near_any, near_row

_NEAR = text(near_row(":value", ":shape"))
# Where a content's request names pictures: fields, and lists whose members' `image` is one.
FIELDS = ("image", "mask")
LISTS = ("controls", "references")


def _names(asked: Any, image_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a content's parameters name a picture."""
    use = func.jsonb_build_object("image_id", image_id)
    member = func.jsonb_build_array(func.jsonb_build_object("image", use))
    return or_(
        *(asked[name]["image_id"].astext == image_id for name in FIELDS),
        *(asked[name].contains(member) for name in LISTS),
    )


class InputRepository:
    """One owner's."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    async def hold(self, key: str) -> None:
        """Take turns over the object `key` until the transaction's end."""
        digest = hashlib.sha256(key.encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        await self._session.execute(select(func.pg_advisory_xact_lock(number)))

    async def list(self, limit: int) -> Sequence[InputImage]:
        """The newest."""
        rows = await self._session.scalars(
            select(InputImage)
            .where(InputImage.owner == self._owner)
            .order_by(InputImage.created_at.desc(), InputImage.id)
            .limit(limit)
        )
        return rows.all()

    async def get(self, image_id: uuid.UUID, *, lock: bool = False) -> InputImage | None:
        """One; `lock` holds it until the transaction's end."""
        query = select(InputImage).where(InputImage.id == image_id, InputImage.owner == self._owner)
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def by_sha256(self, sha256: str) -> InputImage | None:
        """The one with these bytes."""
        return await self._session.scalar(
            select(InputImage).where(InputImage.owner == self._owner, InputImage.sha256 == sha256)
        )

    async def drawn(self, image_id: uuid.UUID) -> Image | None:
        """One of the owner's own drawn pictures; none that is in the bin."""
        return await self._session.scalar(
            select(Image)
            .join(Content, Content.id == Image.generation_id)
            .where(
                Image.id == image_id,
                Content.owner == self._owner,
                Image.deleted_at.is_(None),
                Content.deleted_at.is_(None),
            )
        )

    async def drawn_by_sha256(self, sha256: str) -> Image | None:
        """One of the owner's own drawn pictures by its file's bytes; none that is in the bin."""
        return await self._session.scalar(
            select(Image)
            .join(Content, Content.id == Image.generation_id)
            .where(
                or_(Image.file_sha256 == sha256, Image.sha256 == sha256),
                Content.owner == self._owner,
                Content.deleted_at.is_(None),
                Image.deleted_at.is_(None),
            )
            .limit(1)
        )

    async def use(self, image_id: uuid.UUID) -> None:
        """Note that a content was accepted with it."""
        await self._session.execute(
            update(InputImage)
            .where(InputImage.id == image_id, InputImage.owner == self._owner)
            .values(used_at=func.now())
        )

    async def waiting(self, image_id: uuid.UUID) -> int:
        """How many contents that have not ended are drawn from it."""
        return (
            await self._session.scalar(
                select(func.count())
                .select_from(Content)
                .where(
                    Content.owner == self._owner,
                    Content.finished_at.is_(None),
                    _names(Content.asked, literal(str(image_id))),
                )
            )
            or 0
        )

    async def is_taken_down(self, sha256: str, likeness: int | None, shape: float) -> bool:
        """Whether this picture, or one that it is near, was taken down."""
        known: ColumnElement[bool] = TakenDownPicture.sha256 == sha256
        if likeness is not None:
            near = _NEAR.bindparams(
                bindparam("value", likeness, BigInteger), bindparam("shape", shape, Float)
            )
            known = or_(known, near)
        return bool(await self._session.scalar(select(exists().where(known))))

    async def add(self, image: InputImage) -> None:
        """A new one."""
        self._session.add(image)
        await self._session.flush()

    async def delete(self, image: InputImage) -> None:
        """Remove its row."""
        await self._session.delete(image)
        await self._session.flush()


async def remove_unused_before(session: AsyncSession, moment: datetime, limit: int) -> list[str]:
    """Remove at most `limit` that no content was accepted with since, and none waits for; their
    objects' keys."""
    waiting = aliased(Content)
    is_waited_for = (
        select(waiting.id)
        .where(
            waiting.owner == InputImage.owner,
            waiting.finished_at.is_(None),
            _names(waiting.asked, cast(InputImage.id, String)),
        )
        .exists()
    )
    rows = await session.scalars(
        select(InputImage)
        .where(InputImage.used_at < moment, ~is_waited_for)
        .order_by(InputImage.used_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    old = rows.all()
    await session.execute(delete(InputImage).where(InputImage.id.in_([one.id for one in old])))
    return [one.object_key for one in old]


async def uploads_with(session: AsyncSession, sha256: str, limit: int) -> Sequence[InputImage]:
    """Pictures with these bytes, whoever's: at most `limit`."""
    rows = await session.scalars(
        select(InputImage).where(InputImage.sha256 == sha256).order_by(InputImage.id).limit(limit)
    )
    return rows.all()


async def remove_like(
    session: AsyncSession, hashes: Sequence[str], known: Sequence[Known]
) -> list[tuple[str, str]]:
    """Remove every owner's that has one of `hashes`, or is near one of `known`; each one's
    object's key and hash."""
    rows = await session.execute(
        delete(InputImage)
        .where(or_(InputImage.sha256.in_(hashes), near_any(InputImage, known)))
        .returning(InputImage.object_key, InputImage.sha256)
        .execution_options(synchronize_session=False)
    )
    return [(key, sha256) for key, sha256 in rows]
