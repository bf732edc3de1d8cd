"""What a person does with pictures that are there: stars, boards, the bin, links for others.

Must not know: HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.core.errors import Conflict, NotFound
from app.core.security import key_digest, new_session_token
from app.models import Board, Content, Image, Share
from app.models.base import utc_now
from app.repositories.collection import CollectionRepository, shared


class CollectionService:
    """One owner's pictures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def star(self, owner: str, image_ids: Sequence[uuid.UUID], *, starred: bool) -> None:
        """Give pictures a star, or take it away.

        Raises:
            NotFound: one of them is not there; none is changed.
        """
        async with self._database.session() as session:
            await _check_images(session, owner, image_ids)
            moment = utc_now() if starred else None
            await CollectionRepository(session, owner).star(image_ids, moment)

    async def bin(
        self, owner: str, content_ids: Sequence[uuid.UUID], image_ids: Sequence[uuid.UUID]
    ) -> None:
        """Put contents and single pictures into the bin; what is being drawn is drawn all the same.

        Raises:
            NotFound: one of them is not there; none is changed.
        """
        now = utc_now()
        async with self._database.session() as session:
            await _check(session, owner, content_ids, image_ids)
            repository = CollectionRepository(session, owner)
            await repository.bin_contents(content_ids, now)
            await repository.bin_images(image_ids, now)

    async def restore(
        self, owner: str, content_ids: Sequence[uuid.UUID], image_ids: Sequence[uuid.UUID]
    ) -> Sequence[Content]:
        """Take contents and pictures out of the bin; the contents that are there again.

        Raises:
            NotFound: one of them is gone; none is changed.
        """
        async with self._database.session() as session:
            await _check(session, owner, content_ids, image_ids)
            return await CollectionRepository(session, owner).restore(content_ids, image_ids)

    async def boards(self, owner: str) -> list[tuple[Board, int]]:
        """Every board with the number of its pictures, by name."""
        async with self._database.session() as session:
            return await CollectionRepository(session, owner).boards()

    async def add_board(self, owner: str, name: str) -> Board:
        """A new, empty board.

        Raises:
            Conflict: there is one with this name.
        """
        board = Board(id=uuid.uuid4(), owner=owner, name=name, created_at=utc_now())
        try:
            async with self._database.session() as session:
                await CollectionRepository(session, owner).add_board(board)
        except IntegrityError:
            raise _name_taken() from None
        return board

    async def rename_board(self, owner: str, board_id: uuid.UUID, name: str) -> None:
        """Give a board another name.

        Raises:
            NotFound: it is not there.
            Conflict: another one has this name.
        """
        try:
            async with self._database.session() as session:
                (await _board(session, owner, board_id)).name = name
        except IntegrityError:
            raise _name_taken() from None

    async def remove_board(self, owner: str, board_id: uuid.UUID) -> None:
        """Remove a board; its pictures stay.

        Raises:
            NotFound: it is not there.
        """
        async with self._database.session() as session:
            board = await _board(session, owner, board_id)
            await CollectionRepository(session, owner).remove_board(board)

    async def arrange(
        self,
        owner: str,
        board_id: uuid.UUID,
        add: Sequence[uuid.UUID],
        remove: Sequence[uuid.UUID],
    ) -> None:
        """Put pictures onto a board and take others off.

        Raises:
            NotFound: the board or a picture to add is not there; nothing is changed.
        """
        async with self._database.session() as session:
            await _board(session, owner, board_id)
            await _check_images(session, owner, add)
            repository = CollectionRepository(session, owner)
            await repository.put_on(board_id, add)
            await repository.take_off(board_id, remove)

    async def share(
        self, owner: str, image_id: uuid.UUID, hours: int, *, with_prompt: bool
    ) -> tuple[str, datetime]:
        """(token of a new link, when it expires).

        Raises:
            NotFound: the picture is not there.
        """
        token = new_session_token()
        expires_at = utc_now() + timedelta(hours=hours)
        async with self._database.session() as session:
            await _check_images(session, owner, [image_id])
            await CollectionRepository(session, owner).add_share(
                Share(
                    id=uuid.uuid4(),
                    owner=owner,
                    token_sha256=key_digest(token),
                    image_id=image_id,
                    with_prompt=with_prompt,
                    expires_at=expires_at,
                    created_at=utc_now(),
                )
            )
        return token, expires_at

    async def end_shares(self, owner: str, image_id: uuid.UUID) -> None:
        """End every link to a picture at once.

        Raises:
            NotFound: the picture is not there.
        """
        async with self._database.session() as session:
            await _check_images(session, owner, [image_id])
            await CollectionRepository(session, owner).end_shares(image_id)

    async def shared(self, token: str) -> tuple[Share, Image, Content]:
        """What a link shows, whoever asks.

        Raises:
            NotFound: it was never given, has expired, or its picture is gone.
        """
        async with self._database.session() as session:
            found = await shared(session, key_digest(token), utc_now())
        if found is None:
            raise NotFound("This link has expired, or its picture is gone.")
        return found


async def _board(session: AsyncSession, owner: str, board_id: uuid.UUID) -> Board:
    board = await CollectionRepository(session, owner).board(board_id)
    if board is None:
        raise NotFound("There is no board with this id.")
    return board


async def _check(
    session: AsyncSession,
    owner: str,
    content_ids: Sequence[uuid.UUID],
    image_ids: Sequence[uuid.UUID],
) -> None:
    wanted = set(content_ids)
    if await CollectionRepository(session, owner).count_contents(list(wanted)) < len(wanted):
        raise NotFound("One of these contents is not there.", field="content_ids")
    await _check_images(session, owner, image_ids)


async def _check_images(session: AsyncSession, owner: str, ids: Sequence[uuid.UUID]) -> None:
    wanted = set(ids)
    if await CollectionRepository(session, owner).count_images(list(wanted)) < len(wanted):
        raise NotFound("One of these pictures is not there.", field="image_ids")


async def check_cover(session: AsyncSession, owner: str, image_id: uuid.UUID | None) -> None:
    """Refuse as a cover what is no picture of the owner's.

    Raises:
        NotFound: it is not there.
    """
    if image_id is None:
        return
    if not await CollectionRepository(session, owner).count_images([image_id]):
        raise NotFound("There is no picture with this id.", field="cover_image_id")


def _name_taken() -> Conflict:
    return Conflict(
        "There is a board with this name.", field="name", details={"reason": "name_taken"}
    )
