"""SQL over all owners: takedowns, records, and whose picture has a watermark."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.models import Content, Embedding, GenerationRecord, Image, LoraModel, Webhook
from app.models.takedown import Known, Takedown, TakenDownPicture
from app.repositories.upkeep.near import near_any
from app.repositories.webhooks import new_delivery


class TakedownRepository:
    """Every owner's rows."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def pictures_of(self, content_id: uuid.UUID) -> Sequence[Image]:
        """A content's images."""
        return (
            await self._session.scalars(select(Image).where(Image.generation_id == content_id))
        ).all()

    async def contents_with(self, hashes: Sequence[str], known: Sequence[Known]) -> set[uuid.UUID]:
        """Ids of contents of which a picture is one of `hashes` or near one of `known`."""
        return set(
            await self._session.scalars(
                select(Image.generation_id).where(
                    or_(
                        Image.sha256.in_(hashes),
                        Image.file_sha256.in_(hashes),
                        near_any(Image, known),
                    )
                )
            )
        )

    async def remove(self, ids: set[uuid.UUID]) -> list[tuple[Content, list[str]]]:
        """Remove these contents; each with its objects' keys."""
        rows = await self._session.scalars(
            select(Content)
            .where(Content.id.in_(ids))
            .options(selectinload(Content.images))
            .with_for_update(of=Content)
        )
        removed = [(row, [key for image in row.images for key in image.keys]) for row in rows]
        await self._session.execute(delete(Content).where(Content.id.in_(ids)))
        for row, _ in removed:
            await self._tell(row.owner, "content.taken_down", row.id)
        return removed

    async def _tell(self, owner: str, event: str, about: uuid.UUID) -> None:
        """A message to each webhook of `owner` that wants it, in this transaction."""
        hooks = await self._session.scalars(
            select(Webhook.id).where(
                Webhook.owner == owner, Webhook.is_enabled, Webhook.events.contains([event])
            )
        )
        for hook in hooks:
            self._session.add(new_delivery(hook, event, about))

    async def tell_of_lora(self, sha256: str) -> None:
        """Tell every owner of the LoRA or embedding with these bytes."""
        for kind, event in ((LoraModel, "lora.taken_down"), (Embedding, "embedding.taken_down")):
            rows = await self._session.execute(
                select(kind.owner, kind.id).where(kind.sha256 == sha256)
            )
            for owner, about in rows.all():
                await self._tell(owner, event, about)

    async def pictures_with(self, sha256: str) -> Sequence[Image]:
        """The pictures with this hash, signed or not."""
        return (
            await self._session.scalars(
                select(Image).where(or_(Image.sha256 == sha256, Image.file_sha256 == sha256))
            )
        ).all()

    async def records(
        self, since: datetime | None, until: datetime | None, sha256: str | None, limit: int
    ) -> Sequence[GenerationRecord]:
        """What was drawn, the newest first."""
        query = select(GenerationRecord).order_by(GenerationRecord.created_at.desc()).limit(limit)
        if since is not None:
            query = query.where(GenerationRecord.created_at >= since)
        if until is not None:
            query = query.where(GenerationRecord.created_at < until)
        if sha256 is not None:
            query = query.where(
                or_(
                    GenerationRecord.images.contains([{"sha256": sha256}]),
                    GenerationRecord.images.contains([{"file_sha256": sha256}]),
                )
            )
        return (await self._session.scalars(query)).all()

    async def lora_keys(self, sha256: str) -> list[str]:
        """Objects of every owner's LoRA or embedding with these bytes."""
        keys: list[str] = []
        for kind in (LoraModel, Embedding):
            keys += await self._session.scalars(
                select(kind.object_key).where(kind.sha256 == sha256)
            )
        return keys

    async def blocked(self, hashes: Sequence[str]) -> set[str]:
        """Those of LoRAs' and embeddings' `hashes` that were taken down."""
        if not hashes:
            return set()
        return set(
            await self._session.scalars(
                select(Takedown.value).where(Takedown.kind == "lora", Takedown.value.in_(hashes))
            )
        )

    async def names_picture(self, sha256: str, content_id: str) -> bool:
        """Whether a picture was taken down, by its hash or with its content."""
        content = (Takedown.kind == "content") & (Takedown.value == content_id)
        picture = exists().where(TakenDownPicture.sha256 == sha256)
        return bool(await self._session.scalar(select(exists().where(content) | picture)))

    async def carriers(self, mark: str, most: int) -> Sequence[tuple[uuid.UUID, str]]:
        """Ids and owners of the newest contents with a picture that has this watermark."""
        rows = await self._session.execute(
            select(Content.id, Content.owner)
            .join(Image, Image.generation_id == Content.id)
            .where(
                Image.watermark == mark, Image.deleted_at.is_(None), Content.deleted_at.is_(None)
            )
            .order_by(Image.created_at.desc())
            .limit(most)
        )
        return [(content_id, owner) for content_id, owner in rows]

    async def add(self, takedown: Takedown, hashes: Sequence[str], known: Sequence[Known]) -> None:
        """Keep the record, and by what its pictures are known again."""
        self._session.add(takedown)
        await self._session.flush()
        for sha256 in dict.fromkeys(hashes):
            self._session.add(_picture(takedown, sha256=sha256))
        for one in dict.fromkeys(known):
            self._session.add(_picture(takedown, **one._asdict()))

    async def latest(self, limit: int) -> Sequence[Takedown]:
        """The newest records."""
        return (
            await self._session.scalars(
                select(Takedown).order_by(Takedown.created_at.desc()).limit(limit)
            )
        ).all()


def _picture(takedown: Takedown, **known: str | float | None) -> TakenDownPicture:
    return TakenDownPicture(id=uuid.uuid4(), takedown_id=takedown.id, **known)
