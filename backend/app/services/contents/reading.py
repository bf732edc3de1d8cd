"""Contents read back, and waiting for their end.

Must not know: HTTP, and how contents come about.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Sequence
from datetime import datetime

from app.core.cursor import read_cursor, write_cursor
from app.core.db import Database
from app.core.errors import NotFound
from app.models import Content
from app.models.filters import ContentFilter
from app.repositories.attempts import AttemptRepository
from app.repositories.contents import ContentRepository, ContentStatements
from app.services.contents.listener import Waiters

_LOOK_SECONDS = 1.0  # how often a waiter looks by itself, where another process may draw


class ContentReading:
    """What may be asked of contents without changing them."""

    def __init__(self, database: Database, waiters: Waiters) -> None:
        self._database = database
        self._waiters = waiters

    async def wait(self, content_id: uuid.UUID, seconds: float, *, is_new: bool = False) -> None:
        """Return when the content has ended, is gone, `seconds` are over or the server stops.

        `is_new`: it was accepted just now, so that there is nothing to look for yet.
        """
        deadline = time.monotonic() + seconds
        look_at = time.monotonic() + _LOOK_SECONDS if is_new else 0.0
        with self._waiters.listening(content_id, ends_only=True) as event:
            while not self._waiters.stopping:
                now = time.monotonic()
                if event.is_set():
                    return
                if now >= look_at:
                    async with self._database.direct() as connection:
                        status = await AttemptRepository(connection).status(content_id)
                    if status is None or status.is_final:
                        return
                    look_at = now + _LOOK_SECONDS
                if now >= deadline:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(look_at, deadline) - now)

    async def get(self, owner: str, content_id: uuid.UUID) -> Content:
        """One content with its pictures.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.direct() as connection:
            content = await ContentStatements(connection, owner).get(content_id)
        if content is None:
            raise NotFound("There is no content with this id.")
        return content

    async def open_marked(
        self, owner: str, mark: str, *, after: datetime, limit: int
    ) -> Sequence[Content]:
        """Contents that wait or run and were asked for under `mark` since `after`, newest first."""
        async with self._database.session() as session:
            return await ContentRepository(session, owner).marked(
                mark, after=after, is_open=True, limit=limit
            )

    async def page(
        self,
        owner: str,
        *,
        limit: int,
        cursor: str | None,
        wanted: ContentFilter,
    ) -> tuple[list[Content], str | None]:
        """Newest first, and the cursor of the next page."""
        after = None if cursor is None else read_cursor(cursor)
        async with self._database.snapshot() as session:
            rows = await ContentRepository(session, owner).page(
                limit=limit + 1, after=after, wanted=wanted
            )
        page = list(rows[:limit])
        more = len(rows) > limit
        return page, write_cursor(page[-1].created_at, page[-1].id) if more else None
