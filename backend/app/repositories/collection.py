"""SQL of what a person does with pictures: stars, boards, the bin, shared links."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.models import Board, BoardImage, Content, Image, Share


class CollectionRepository:
    """One owner's pictures."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    def _own_images(self, ids: Sequence[uuid.UUID]) -> ColumnElement[bool]:
        own = select(Content.id).where(Content.owner == self._owner)
        return Image.id.in_(ids) & Image.generation_id.in_(own)

    async def count_images(self, ids: Sequence[uuid.UUID]) -> int:
        """How many of `ids` are the owner's."""
        query = select(func.count()).select_from(Image).where(self._own_images(ids))
        return await self._session.scalar(query) or 0

    async def count_contents(self, ids: Sequence[uuid.UUID]) -> int:
        """How many of `ids` are the owner's."""
        query = (
            select(func.count())
            .select_from(Content)
            .where(Content.id.in_(ids), Content.owner == self._owner)
        )
        return await self._session.scalar(query) or 0

    async def star(self, ids: Sequence[uuid.UUID], moment: datetime | None) -> None:
        """Give pictures a star, or take it away (None)."""
        await self._session.execute(
            update(Image).where(self._own_images(ids)).values(starred_at=moment)
        )

    async def bin_images(self, ids: Sequence[uuid.UUID], moment: datetime) -> None:
        """Put pictures into the bin; a content whose last picture went goes along."""
        touched = (
            await self._session.scalars(
                update(Image)
                .where(self._own_images(ids), Image.deleted_at.is_(None))
                .values(deleted_at=moment)
                .returning(Image.generation_id)
            )
        ).all()
        left = exists().where(Image.generation_id == Content.id, Image.deleted_at.is_(None))
        await self.bin_contents(set(touched), moment, ~left)

    async def bin_contents(
        self,
        ids: Sequence[uuid.UUID] | set[uuid.UUID],
        moment: datetime,
        *more: ColumnElement[bool],
    ) -> None:
        """Put contents into the bin."""
        await self._session.execute(
            update(Content)
            .where(
                Content.id.in_(ids),
                Content.owner == self._owner,
                Content.deleted_at.is_(None),
                *more,
            )
            .values(deleted_at=moment)
        )

    async def restore(
        self, content_ids: Sequence[uuid.UUID], image_ids: Sequence[uuid.UUID]
    ) -> Sequence[Content]:
        """Take contents, with all their pictures, and single pictures out of the bin again."""
        whole = Image.generation_id.in_(
            select(Content.id).where(Content.id.in_(content_ids), Content.owner == self._owner)
        )
        touched = (
            await self._session.scalars(
                update(Image)
                .where(self._own_images(image_ids) | whole)
                .values(deleted_at=None)
                .returning(Image.generation_id)
            )
        ).all()
        ids = {*content_ids, *touched}
        await self._session.execute(
            update(Content)
            .where(Content.id.in_(ids), Content.owner == self._owner)
            .values(deleted_at=None)
        )
        rows = await self._session.scalars(
            select(Content)
            .where(Content.id.in_(ids), Content.owner == self._owner)
            .options(selectinload(Content.images))
            .execution_options(populate_existing=True)
        )
        return rows.all()

    async def boards(self) -> list[tuple[Board, int]]:
        """Every board with the number of its pictures that are not in the bin, by name."""
        there = Image.deleted_at.is_(None) & Content.deleted_at.is_(None)
        rows = await self._session.execute(
            select(Board, func.count(Image.id).filter(there))
            .outerjoin(BoardImage, BoardImage.board_id == Board.id)
            .outerjoin(Image, Image.id == BoardImage.image_id)
            .outerjoin(Content, Content.id == Image.generation_id)
            .where(Board.owner == self._owner)
            .group_by(Board.id)
            .order_by(func.lower(Board.name), Board.id)
        )
        return [(board, count) for board, count in rows]

    async def board(self, board_id: uuid.UUID) -> Board | None:
        """One."""
        return await self._session.scalar(
            select(Board).where(Board.id == board_id, Board.owner == self._owner).with_for_update()
        )

    async def add_board(self, board: Board) -> None:
        """Insert."""
        self._session.add(board)
        await self._session.flush()

    async def remove_board(self, board: Board) -> None:
        """Remove the row; its pictures stay."""
        await self._session.delete(board)

    async def put_on(self, board_id: uuid.UUID, ids: Sequence[uuid.UUID]) -> None:
        """Add pictures to a board; those that are on it stay."""
        if ids:
            rows = [{"board_id": board_id, "image_id": image_id} for image_id in dict.fromkeys(ids)]
            await self._session.execute(insert(BoardImage).values(rows).on_conflict_do_nothing())

    async def take_off(self, board_id: uuid.UUID, ids: Sequence[uuid.UUID]) -> None:
        """Take pictures from a board."""
        await self._session.execute(
            delete(BoardImage).where(BoardImage.board_id == board_id, BoardImage.image_id.in_(ids))
        )

    async def add_share(self, share: Share) -> None:
        """Insert."""
        self._session.add(share)
        await self._session.flush()

    async def end_shares(self, image_id: uuid.UUID) -> None:
        """End every link to a picture."""
        await self._session.execute(
            delete(Share).where(Share.image_id == image_id, Share.owner == self._owner)
        )


async def shared(
    session: AsyncSession, token_sha256: str, now: datetime
) -> tuple[Share, Image, Content] | None:
    """What a link shows, whoever asks; None where it has expired or its picture is gone."""
    row = (
        await session.execute(
            select(Share, Image, Content)
            .join(Image, Image.id == Share.image_id)
            .join(Content, Content.id == Image.generation_id)
            .where(
                Share.token_sha256 == token_sha256,
                Share.expires_at > now,
                Image.deleted_at.is_(None),
                Content.deleted_at.is_(None),
            )
        )
    ).one_or_none()
    return None if row is None else (row[0], row[1], row[2])
