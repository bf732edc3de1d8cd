"""Batches, read back: how far each one is.

Must not know: HTTP, and how batches are made.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from app.core.cursor import read_cursor, write_cursor
from app.core.db import Database
from app.core.errors import NotFound
from app.models import Batch
from app.repositories.batches import BatchRepository

# A batch, and how many of its contents are in which state; deleted ones are in none.
Counted = tuple[Batch, dict[str, int]]


class BatchService:
    """One owner's batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, owner: str, batch_id: uuid.UUID) -> Counted:
        """One.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.snapshot() as session:
            found = await BatchRepository(session, owner).get(batch_id)
        if found is None:
            raise NotFound("There is no batch with this id.")
        return found

    async def content_ids(self, owner: str, batch_id: uuid.UUID) -> Sequence[uuid.UUID]:
        """Its contents that have not ended, in the order that they were asked for.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        await self.get(owner, batch_id)
        async with self._database.session() as session:
            return await BatchRepository(session, owner).open_ids(batch_id)

    async def page(
        self, owner: str, *, limit: int, cursor: str | None, is_grid: bool | None = None
    ) -> tuple[list[Counted], str | None]:
        """Newest first, and the cursor of the next page; only the grids, or only the others.

        Raises:
            InvalidRequest: `cursor` is none.
        """
        after = None if cursor is None else read_cursor(cursor)
        async with self._database.snapshot() as session:
            found = await BatchRepository(session, owner).page(
                limit=limit + 1, after=after, is_grid=is_grid
            )
        page = found[:limit]
        if len(found) <= limit:
            return page, None
        last = page[-1][0]
        return page, write_cursor(last.created_at, last.id)
